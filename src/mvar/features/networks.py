"""Frozen feature networks by name, or by a file whose tensors say which network they are."""

from pathlib import Path

from torch import Tensor

from mvar.features.base import FeatureNetwork, read_weights
from mvar.features.dino import DINO
from mvar.features.effnet import EffNetLite0
from mvar.features.vgg import VGG16

KNOWN = (
    "give effnet-lite0, or a .pth or .safetensors file with weights of VGG16 (torchvision's), LPIPS with VGG16, "
    "both as vgg16.pth+vgg_lpips.pth, or DINO or DINOv2 ViT-S, B or L (their authors')"
)


def find_network(name_or_path: str) -> FeatureNetwork:
    """A frozen feature network on the CPU.

    Args:
        name_or_path: "effnet-lite0", or a file; a plus joins the files of one network ("vgg16.pth+vgg_lpips.pth").

    Raises:
        ValueError: no such file, a damaged one, or tensors of no known network; one line that lists the known ones.
    """
    if name_or_path == "effnet-lite0":
        return EffNetLite0()
    try:
        tensors: dict[str, Tensor] = {}
        for path in [name_or_path] if Path(name_or_path).is_file() else name_or_path.split("+"):
            tensors |= read_weights(Path(path))
        if "patch_embed.proj.weight" in tensors:
            return DINO(tensors)
        if any(key.startswith(("features.", "net.slice")) for key in tensors):
            return VGG16(tensors)
        if "lin0.model.1.weight" in tensors:
            raise ValueError("these are LPIPS's channel weights alone, without VGG16")
        raise ValueError(f"no known network has {', '.join([*tensors][:3])}")
    except (ValueError, KeyError) as error:
        raise ValueError(f"perceptual_network = {name_or_path!r}: {error}; {KNOWN}") from error
