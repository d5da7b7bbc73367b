"""What `mvar sample-best` adds to `mvar sample`: the best of several candidates, and the record of that.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mvar.model import Model
    from mvar.sampling.engine import SampleOutput
    from mvar.sampling.labels import Label
    from mvar.sampling.rejection import JudgeLike
    from mvar.sampling.report import Samples


class BestOf:
    """Draws as `Model.sample` does, but keeps the best of several candidates; then says what that took.

    Image i of the run is of group i // keep.
    """

    def __init__(self, judge: str, keep: int, of: int, fork_at: int) -> None:
        """Args:
            judge: "self" or the file of a classifier, which is read at once.
            keep, of, fork_at: see `mvar.sampling.rejection.Quota`.

        Raises:
            ValueError: more to keep than there are, or a file that is not a judge's.
        """
        from mvar.features.judge import Judge
        from mvar.sampling.rejection import SELF, Quota

        self._name, self._quota = judge, Quota(keep=keep, of=of, fork_at=fork_at)
        self._judge: JudgeLike = judge if judge == SELF else Judge.load(judge)
        self._scores: list[Tensor] = []
        self._chosen: list[dict[str, Any]] = []
        self._seconds = 0.0

    def at_once(self, batch_size: int) -> int:
        """How many images to ask for at once: those of as many whole groups as a batch of candidates has."""
        return self._quota.keep * max(1, batch_size // self._quota.of)

    def draw(
        self, model: "Model", labels: "Sequence[Label]", *, index: Sequence[int], batch_size: int, **settings: Any
    ) -> "SampleOutput":
        """The images of these numbers, all of whole groups; arguments are those of `Model.sample`."""
        keep = self._quota.keep
        groups = [i // keep for i in index[::keep]]
        out = model.sample_best(
            labels[::keep], self._judge, **asdict(self._quota), index=groups, batch_size=batch_size, **settings
        )
        self._scores.append(out.scores_Gn)
        self._seconds += out.seconds
        self._chosen += [
            {"candidate": number, "score": score}
            for number, score in zip(out.candidates, out.scores.tolist(), strict=True)
        ]
        return out

    def facts(self) -> dict[str, Any]:
        """Which judge chooses, and of how many."""
        from mvar.files import file_sha256
        from mvar.sampling.rejection import SELF

        weights = {} if self._name == SELF else {"judge_sha256": file_sha256(self._name)}
        return {"judge": self._name, **weights, **asdict(self._quota)}

    def told(self, samples: "Samples") -> "Samples":
        """Print what was accepted and what it cost; give the images' report with it, and what each one scored."""
        import torch

        from mvar.sampling.rejection import report

        found = report(self._quota, torch.cat(self._scores), self._seconds)
        print(
            f"kept {found['kept']} of {found['candidates']} candidates ({100 * found['acceptance']:.3g} %) by judge "
            f"{self._name}: mean score {found['mean_score_kept']:.3f}, of all {found['mean_score_all']:.3f}; "
            f"{found['candidates_per_kept']:g} candidates and {found['seconds_per_kept']:.3f} s for an image"
        )
        return replace(samples, facts={**samples.facts, **found}, details=self._chosen)
