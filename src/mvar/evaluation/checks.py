"""What every measurement on features refuses.

Shapes: N, M images, F features.
"""

from torch import Tensor


def check_features(features_NF: Tensor, name: str = "features") -> None:
    """Raises ValueError unless features are (N, F) and finite."""
    if features_NF.ndim != 2:
        raise ValueError(f"{name} have shape {tuple(features_NF.shape)}: give (N, F)")
    if not bool(features_NF.isfinite().all()):
        raise ValueError(f"{name} are not finite: a network or an image is damaged")


def check_two_sets(real_NF: Tensor, fake_MF: Tensor, least: int, why: str) -> None:
    """Raises ValueError unless both sets are (N, F) and finite, of one F, and of at least so many images."""
    for features_NF, name in ((real_NF, "features of real images"), (fake_MF, "features of samples")):
        check_features(features_NF, name)
        if len(features_NF) < least:
            raise ValueError(f"{name}: {len(features_NF)} images are too few, {why} needs at least {least}")
    check_dimensions(real_NF.shape[1], fake_MF.shape[1])


def check_dimensions(a: int, b: int) -> None:
    """Raises ValueError unless two sets have the same number of features."""
    if a != b:
        raise ValueError(f"the sets have {a} and {b} features: use one network for both")
