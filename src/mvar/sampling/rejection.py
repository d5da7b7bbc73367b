"""Best of n: of several candidates for an image, keep those that a judge scores highest.

Shapes: B candidates, G groups of n candidates each, of which k are kept; H W pixels.
Source: classifier-based rejection sampling of VQ-VAE-2 (Razavi et al. 2019); that a model with and without its class is
a classifier of its own samples is what classifier-free guidance rests on (Ho & Salimans 2022, section 3.2). Candidates
with the same coarse maps are ours.

Group g has candidates g * n to g * n + n - 1. Candidate i is what `Sampler.sample` draws with index i; the maps that a
group has in common are those of candidate g * n. So a result depends on (seed, the group's number, label, settings,
judge, n, fork_at) only, and the first n candidates of a larger group are not those of a smaller one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvar.features.judge import Judge
from mvar.generator.network import Generator
from mvar.sampling.engine import SampleOutput, Sampler, batches, concatenated
from mvar.sampling.likelihood import score
from mvar.settings import Candidates, Place, raise_problems, settings
from mvar.tokenizer.network import Tokenizer

SELF = "self"  # the judge that is the model's own likelihood

# From pixels (B, 3, H, W) in [0, 1] and class indices (B,) (the null class for none) to scores (B,).
PixelJudge = Callable[[Tensor, Tensor], Tensor]
JudgeLike = PixelJudge | Judge | str | Path
# Scores (B,) of candidates and their class indices, the higher the better.
Scorer = Callable[[SampleOutput, Tensor], Tensor]


@settings
class Quota:
    """How many candidates a group has, and how many of them are kept.

    Attributes:
        keep: the best of a group that are kept.
        of: candidates per group.
        fork_at: how many coarse maps the candidates of a group have in common; 0 for none.
    """

    keep: Candidates = 1
    of: Candidates = 8
    fork_at: Place = 0

    def __post_init__(self) -> None:
        if self.keep > self.of:
            raise ValueError(f"keep = {self.keep}: of {self.of} candidates give 1 to {self.of} to keep")

    def check(self, scales: int) -> None:
        """Raise ValueError where the candidates would have all K maps in common."""
        if self.fork_at >= scales:
            raise ValueError(f"fork_at = {self.fork_at}: give 0 (no map is shared) to {scales - 1}")


@dataclass(frozen=True)
class BestOutput(SampleOutput):
    """The kept images, group by group and the best first.

    Attributes:
        index: the groups' numbers.
        quota: how many were kept of how many.
        scores_Gn: the scores of all candidates, float64.
        seconds: that drawing and scoring took.
    """

    index: list[int]
    quota: Quota
    scores_Gn: Tensor
    seconds: float

    @property
    def candidates(self) -> list[int]:
        """Each kept image's number among the candidates."""
        kept_Gk = best_places(self.scores_Gn, self.quota.keep)
        firsts = [g * self.quota.of for g in self.index]  # Python integers: they may be beyond int64
        return [first + place for first, row in zip(firsts, kept_Gk.tolist(), strict=True) for place in row]

    @property
    def scores(self) -> Tensor:
        """Each kept image's score, (G * k,)."""
        return self.scores_Gn.gather(1, best_places(self.scores_Gn, self.quota.keep)).flatten()

    @property
    def report(self) -> dict[str, Any]:
        """Acceptance, cost per kept image, and mean scores of those kept and of all candidates."""
        kept = self.scores
        return {
            **asdict(self.quota),
            "acceptance": self.quota.keep / self.quota.of,
            "kept": kept.numel(),
            "candidates": self.scores_Gn.numel(),
            "candidates_per_kept": self.quota.of / self.quota.keep,
            "seconds": self.seconds,
            "seconds_per_kept": self.seconds / kept.numel(),
            "mean_score_kept": float(kept.mean()),
            "mean_score_all": float(self.scores_Gn.mean()),
        }


def best_places(scores_Gn: Tensor, keep: int) -> Tensor:
    """Which candidates of each group are kept, (G, k), the best first; of equal ones the lower number."""
    return scores_Gn.argsort(dim=1, descending=True, stable=True)[:, :keep]


# --- judges ---


def find_scorer(judge: JudgeLike, sampler: Sampler, labels_G: Tensor) -> Scorer:
    """How a judge scores candidates that the sampler draws for these classes.

    Raises:
        ValueError: a file that is not a judge's, or a model, labels or settings that the judge cannot score.
    """
    classes = sampler.generator.config.num_classes
    without_class = bool((labels_G == classes).any())
    if judge == SELF:
        problems = []
        if classes == 0:
            why = "the model has no classes, so that log p(x | class) - log p(x) is 0 for every image"
            problems.append(f"judge = 'self': {why}; give a file or a function")
        elif without_class:
            why = "judge = 'self' compares a class with none, and all would score 0"
            problems.append(f"labels has -1: {why}; give classes")
        if sampler.settings.smooth:
            problems.append("smooth = True: judge = 'self' needs tokens, which smooth samples lack; switch it off")
        raise_problems(problems)
        return lambda drawn, labels_B: own_scores(sampler.tokenizer, sampler.generator, drawn.tokens or (), labels_B)
    network = Judge.load(judge) if isinstance(judge, (str, Path)) else judge
    if not isinstance(network, Judge):
        return lambda drawn, labels_B: network(drawn.pixels, labels_B)
    if (known := network.head.out_features) != classes:
        raise ValueError(f"judge: tells {known} classes apart, the model has {classes}; train one on these")
    if without_class:
        raise ValueError("labels has -1: a classifier scores the wanted class; give classes, or a function as judge")

    @torch.inference_mode()
    def class_scores(drawn: SampleOutput, labels_B: Tensor) -> Tensor:
        return network(drawn.pixels).double().log_softmax(1).gather(1, labels_B[:, None])[:, 0]

    return class_scores


def own_scores(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor], labels_B: Tensor) -> Tensor:
    """log p(tokens | class) - log p(tokens | no class) in nats, float64 (B,).

    Of the tokens that were drawn, not of the decoded image encoded again; under the raw model (temperature 1, no
    guidance, no filter), however they were drawn. "No class" is the null class that guidance uses, not the mean over
    all classes.
    """
    null_B = torch.full_like(labels_B, generator.config.num_classes)
    with_class, without = (score(tokenizer, generator, maps, ids_B).log_prob for ids_B in (labels_B, null_B))
    return with_class - without


# --- drawing ---


def best(
    sampler: Sampler, scorer: Scorer, labels_G: Tensor, index: Sequence[int], quota: Quota, batch_size: int
) -> BestOutput:
    """Draw every group's candidates, `batch_size` at once, and keep the best.

    Only the kept ones stay in memory. Common maps run through the generator once per group.

    Args:
        labels_G, index: each group's class and number.

    Raises:
        ValueError: scores of another shape, or NaN.
    """
    start = time.perf_counter()
    kept, scores = [], []
    for part in batches(len(labels_G), max(1, batch_size // quota.of)):
        groups = index[part]
        drawn, scores_gn = _candidates(sampler, scorer, labels_G[part], groups, quota, batch_size)
        rows_gk = best_places(scores_gn, quota.keep) + quota.of * torch.arange(len(groups))[:, None]
        kept.append(drawn.select(rows_gk.flatten()))
        scores.append(scores_gn)
    out = concatenated(kept)
    return BestOutput(out.pixels, out.tokens, list(index), quota, torch.cat(scores), time.perf_counter() - start)


def _candidates(
    sampler: Sampler, scorer: Scorer, labels_g: Tensor, groups: Sequence[int], quota: Quota, batch_size: int
) -> tuple[SampleOutput, Tensor]:
    """All candidates of one group, or of as many as fit into a batch; and their scores (g, n)."""
    numbers = [g * quota.of + place for g in groups for place in range(quota.of)]
    labels_B = labels_g.repeat_interleave(quota.of)
    stem = sampler.start(labels_g, numbers[:: quota.of])
    for _ in range(quota.fork_at):
        stem = sampler.draw(stem)
    parts, scores = [], []
    for part in batches(len(numbers), batch_size):  # several only where one group is more than a batch
        drawn = sampler.finish(stem.fork(numbers[part]))
        parts.append(drawn)
        scores.append(_checked(scorer(drawn, labels_B[part]), len(drawn.pixels)))
    return concatenated(parts), torch.cat(scores).unflatten(0, (len(groups), quota.of))


def _checked(scores_B: Any, B: int) -> Tensor:
    """A judge's scores as float64 on the CPU."""
    scores = torch.as_tensor(scores_B).detach().cpu().double()
    if scores.shape != (B,):
        raise ValueError(f"judge: gave scores of shape {tuple(scores.shape)} for {B} images; expected ({B},)")
    if bool(scores.isnan().any()):
        raise ValueError("judge: gave NaN as a score; give -inf to what must not be kept")
    return scores
