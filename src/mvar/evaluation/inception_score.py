"""The Inception score: how sure a classifier is of each sample, and how many classes it sees in all of them.

Shapes: N images, n images of a part, K classes.
Source: Salimans et al. 2016, section 4.
"""

import torch
from torch import Tensor

from mvar.settings import is_integer


def inception_score(probabilities_NK: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean over images of KL(p(class | image) || mean p)) of each part of the images: mean and standard deviation.

    Parts are consecutive images, as given. Samples written class by class would make parts of few classes, and the
    score far too low: mix the order first, as `mvar.evaluation.measures.measure` does. The deviation is that of the
    parts as they are (divided by their number), as in published figures.

    Args:
        probabilities_NK: the classifier's, each row sums to 1.
        splits: parts, at most as many as images.

    Returns:
        The mean, between 1 and K, and the deviation.

    Raises:
        ValueError: rows that are no probabilities, or fewer images than parts.
    """
    if probabilities_NK.ndim != 2:
        raise ValueError(f"probabilities have shape {tuple(probabilities_NK.shape)}: give (N, K)")
    N = len(probabilities_NK)
    if not is_integer(splits) or not 1 <= splits <= N:
        raise ValueError(f"splits = {splits!r}: must be an integer from 1 to the number of images, {N}")
    sums_N = probabilities_NK.double().sum(1)
    # Written so that NaN fails too.
    if not bool((probabilities_NK >= 0).all() and ((sums_N - 1).abs() < 1e-3).all()):
        raise ValueError("probabilities are negative, not finite or do not sum to 1: give softmax outputs, no logits")
    scores = []
    for i in range(splits):
        p_nK = probabilities_NK[i * N // splits : (i + 1) * N // splits].double()
        divergence_n = (torch.xlogy(p_nK, p_nK) - torch.xlogy(p_nK, p_nK.mean(0))).sum(1)
        scores.append(divergence_n.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
