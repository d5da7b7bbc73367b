"""Rejection sampling: of several candidates for an image, keep those that a judge likes best.

Shapes: B candidates, G groups of n candidates each, of which k are kept; H W pixels.
Source: classifier-based rejection sampling of VQ-VAE-2 (Razavi et al. 2019); that a model with and without its class is
a classifier of its own samples is what classifier-free guidance rests on (Ho & Salimans 2022, section 3.2). Candidates
that share their coarse maps are ours.

Group g has the candidates number g * n to g * n + n - 1. Candidate i is what `Sampler.sample` draws with index i; when
the first maps are shared, they are those of candidate g * n. So a result depends on (seed, the group's number, label,
settings, judge, n, fork_at) only, and the first n candidates of a larger group are not those of a smaller one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mvar.features.judge import Judge
from mvar.generator.network import Generator
from mvar.sampling.engine import SampleOutput, Sampler, joined
from mvar.sampling.likelihood import score
from mvar.settings import Candidates, Place, raise_problems, settings
from mvar.tokenizer.network import Tokenizer

SELF = "self"  # the judge's name that stands for the model's own likelihood


class PixelJudge(Protocol):
    """Whoever scores images: the higher, the better."""

    def __call__(self, pixels_B3HW: Tensor, labels_B: Tensor, /) -> Tensor:
        """Scores (B,) of pixels in [0, 1] and their class indices (the number of classes stands for none)."""
        ...


JudgeLike = PixelJudge | Judge | str | Path
# Scores (B,) of candidates and their class indices.
Scorer = Callable[[SampleOutput, Tensor], Tensor]


@settings
class Choice:
    """How many candidates a group has, and how many of them stay.

    Attributes:
        keep: the best of a group that are kept.
        of: candidates of a group.
        fork_at: maps that the candidates of a group share, coarse ones first; 0 shares none.
    """

    keep: Candidates = 1
    of: Candidates = 8
    fork_at: Place = 0

    def __post_init__(self) -> None:
        if self.keep > self.of:
            raise ValueError(f"keep = {self.keep}: of {self.of} candidates give 1 to {self.of} to keep")

    def check(self, scales: int) -> None:
        """Raise ValueError where the candidates would share all K maps of a model."""
        if self.fork_at >= scales:
            raise ValueError(f"fork_at = {self.fork_at}: give 0 (no map is shared) to {scales - 1}")


@dataclass(frozen=True)
class BestOutput(SampleOutput):
    """The kept images, group by group and the best first; and what all candidates scored.

    Attributes:
        index: the groups' numbers.
        choice: how many were kept of how many.
        scores_Gn: the scores of all candidates, float64.
        seconds: that drawing and judging took.
    """

    index: list[int]
    choice: Choice
    scores_Gn: Tensor
    seconds: float

    @property
    def candidates(self) -> list[int]:
        """Each kept image's number among the candidates."""
        places_Gk = best_places(self.scores_Gn, self.choice.keep)
        firsts = [g * self.choice.of for g in self.index]  # beyond int64, numbers may be
        return [first + place for first, row in zip(firsts, places_Gk.tolist(), strict=True) for place in row]

    @property
    def scores(self) -> Tensor:
        """Each kept image's score, (G * k,)."""
        return self.scores_Gn.gather(1, best_places(self.scores_Gn, self.choice.keep)).flatten()

    @property
    def report(self) -> dict[str, Any]:
        """What was accepted and what it cost; see `report`."""
        return report(self.choice, self.scores_Gn, self.seconds)


def best_places(scores_Gn: Tensor, keep: int) -> Tensor:
    """Which candidates of each group are kept, (G, k), the best first; of equal ones that with the lower number."""
    return scores_Gn.argsort(dim=1, descending=True, stable=True)[:, :keep]


def report(choice: Choice, scores_Gn: Tensor, seconds: float) -> dict[str, Any]:
    """Acceptance, cost for each kept image, and mean scores of those kept and of all candidates."""
    kept_Gk = scores_Gn.gather(1, best_places(scores_Gn, choice.keep))
    return {
        "keep": choice.keep,
        "of": choice.of,
        "fork_at": choice.fork_at,
        "acceptance": choice.keep / choice.of,
        "kept": kept_Gk.numel(),
        "candidates": scores_Gn.numel(),
        "candidates_per_kept": choice.of / choice.keep,
        "seconds": seconds,
        "seconds_per_kept": seconds / kept_Gk.numel(),
        "mean_score_kept": float(kept_Gk.mean()),
        "mean_score_all": float(scores_Gn.mean()),
    }


# --- judges ---


def find_scorer(judge: JudgeLike, sampler: Sampler, labels_G: Tensor) -> Scorer:
    """How candidates are scored by a judge.

    Args:
        judge: "self" for `own_scores`; a file of `mvar.features.judge.Judge`, or one, for the log-probability of the
            wanted class; or any function of pixels (B, 3, H, W) in [0, 1] and class indices (B,) to scores (B,).
        sampler: that draws the candidates.
        labels_G: class indices that are wanted.

    Raises:
        ValueError: a file that is no judge's, a judge of other classes, a model, images or settings that the judge
            cannot score.
    """
    classes = sampler.generator.config.num_classes
    if judge == SELF:
        raise_problems(_self_problems(classes, labels_G, sampler.settings.smooth))
        return lambda drawn, labels_B: own_scores(sampler.tokenizer, sampler.generator, drawn.tokens or (), labels_B)
    network = Judge.load(judge) if isinstance(judge, (str, Path)) else judge
    if not isinstance(network, Judge):
        return lambda drawn, labels_B: network(drawn.pixels, labels_B)
    if (known := network.head.out_features) != classes:
        raise ValueError(f"judge: tells {known} classes apart, the model has {classes}; train one on these")
    if bool((labels_G == classes).any()):
        raise ValueError("labels has -1: a classifier scores the wanted class; give classes, or a function as judge")
    return lambda drawn, labels_B: class_scores(network, drawn.pixels, labels_B)


def _self_problems(classes: int, labels_G: Tensor, smooth: bool) -> list[str]:
    """Why a model cannot judge its own samples."""
    found = []
    if classes == 0:
        found.append(
            "judge = 'self': the model has no classes, so that log p(x | class) - log p(x) is 0 for every image; "
            "give a file or a function"
        )
    elif bool((labels_G == classes).any()):
        found.append("labels has -1: judge = 'self' compares a class with none, and all would score 0; give classes")
    if smooth:
        found.append("smooth = True: judge = 'self' needs tokens, which smooth samples have not; switch it off")
    return found


def own_scores(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor], labels_B: Tensor) -> Tensor:
    """log p(tokens | class) - log p(tokens | no class) in nats, float64 (B,).

    Of the very tokens that were drawn, not of the decoded image encoded again. Both terms are teacher-forced and exact
    under the raw model, as `mvar.sampling.likelihood.score` has them: temperature 1, no guidance, no filter, however
    the tokens were drawn. log p(x) is what the generator gives with its null class, the one that guidance uses, and not
    the mean over all classes.
    """
    null_B = torch.full_like(labels_B, generator.config.num_classes)
    with_class, without = (score(tokenizer, generator, maps, ids_B).log_prob for ids_B in (labels_B, null_B))
    return with_class - without


@torch.inference_mode()
def class_scores(judge: Judge, pixels_B3HW: Tensor, labels_B: Tensor) -> Tensor:
    """The classifier's log-probability of each image's class, (B,)."""
    log_prob_BC = judge(pixels_B3HW).double().log_softmax(1)
    return log_prob_BC.gather(1, labels_B[:, None])[:, 0]


# --- drawing ---


def best(
    sampler: Sampler, scorer: Scorer, labels_G: Tensor, index: Sequence[int], choice: Choice, batch_size: int
) -> BestOutput:
    """Draw every group's candidates and keep the best.

    Only the kept ones stay in memory. Shared maps run through the generator once for each group.

    Args:
        sampler: seed and settings.
        scorer: of candidates; higher is better.
        labels_G: a class for each group.
        index: each group's number.
        choice: how many to keep of how many.
        batch_size: candidates at once.

    Raises:
        ValueError: scores of another shape, or that are no numbers.
    """
    start = time.perf_counter()
    kept, scores = [], []
    for rows_g in torch.arange(len(labels_G)).split(max(1, batch_size // choice.of)):
        groups = [index[i] for i in rows_g.tolist()]
        drawn, scores_gn = _candidates(sampler, scorer, labels_G[rows_g], groups, choice, batch_size)
        places_gk = best_places(scores_gn, choice.keep) + choice.of * torch.arange(len(groups))[:, None]
        kept.append(drawn.select(places_gk.flatten()))
        scores.append(scores_gn)
    out = joined(kept)
    return BestOutput(out.pixels, out.tokens, list(index), choice, torch.cat(scores), time.perf_counter() - start)


def _candidates(
    sampler: Sampler, scorer: Scorer, labels_g: Tensor, groups: Sequence[int], choice: Choice, batch_size: int
) -> tuple[SampleOutput, Tensor]:
    """All candidates of some groups, of one or of as many as fit into a batch; and their scores (g, n)."""
    numbers = [g * choice.of + place for g in groups for place in range(choice.of)]
    labels_B = labels_g.repeat_interleave(choice.of)
    stem = sampler.start(labels_g, numbers[:: choice.of])
    for _ in range(choice.fork_at):
        stem = sampler.draw(stem)
    parts, scores = [], []
    for first in range(0, len(numbers), batch_size):  # several parts only where a single group is more than a batch
        part = slice(first, first + batch_size)
        drawn = sampler.finish(stem.fork(numbers[part]))
        parts.append(drawn)
        scores.append(_checked(scorer(drawn, labels_B[part]), len(drawn.pixels)))
    return joined(parts), torch.cat(scores).unflatten(0, (len(groups), choice.of))


def _checked(scores_B: Any, B: int) -> Tensor:
    """Scores as float64 on the CPU; whatever a judge gave."""
    scores = torch.as_tensor(scores_B).detach().cpu().double()
    if scores.shape != (B,):
        raise ValueError(f"judge: gave scores of shape {tuple(scores.shape)} for {B} images; expected ({B},)")
    if bool(scores.isnan().any()):
        raise ValueError("judge: gave a score that is no number (NaN); give -inf to what must not be kept")
    return scores
