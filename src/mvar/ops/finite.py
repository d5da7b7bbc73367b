"""Whether numbers are finite, in one pass over them: of weights that are loaded, and of what networks give."""

from collections.abc import Mapping

from torch import Tensor

# Of what a network gives: why it is not finite, and what helps.
CAUSE = "its weights are damaged, or overflow in bfloat16"
REMEDY = "load the model with dtype float32, or get it again"


def all_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, without a temporary; true on the meta device, which has no numbers."""
    if x.is_meta or not x.numel():
        return True
    low, high = x.detach().aminmax()  # both NaN where there is one
    return bool(low.isfinite() & high.isfinite())


def damage(weights: Mapping[str, Tensor]) -> str | None:
    """Where weights hold NaN or infinity, in one line that names the first such tensor; None where they do not."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            bad = tensor.numel() - int(tensor.isfinite().sum())
            return (
                f"{name} holds NaN or infinity in {bad} of {tensor.numel()} places: the file is damaged, or training "
                "diverged; get it again, or take an earlier checkpoint"
            )
    return None
