"""Frozen feature networks by name, or by a file whose tensors say which network they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvar.features.base import FeatureNetwork
from mvar.features.dino import DINO
from mvar.features.effnet import EffNetLite0
from mvar.features.vgg import VGG16
from mvar.tensor_files import read_tensors

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
        tensors = _read(name_or_path)
        if "patch_embed.proj.weight" in tensors:
            return DINO(tensors)
        if any(key.startswith(("features.", "net.slice")) for key in tensors):
            return VGG16(tensors)
        if "lin0.model.1.weight" in tensors:
            raise ValueError("these are LPIPS's channel weights alone, without VGG16")
        raise ValueError(f"no known network has {', '.join([*tensors][:3]) or 'no tensor'}")
    except ValueError as error:
        raise ValueError(f"perceptual_network = {name_or_path!r}: {error}; {KNOWN}") from error


def _read(name: str) -> dict[str, Any]:
    paths = [name] if Path(name).is_file() else name.split("+")
    tensors: dict[str, Any] = {}
    for path in map(Path, paths):
        content = read_tensors(path)
        if not isinstance(content, Mapping):
            raise ValueError(f"{path.name} holds a {type(content).__name__}, not a state dict")
        if twice := next((key for key in content if key in tensors), None):
            raise ValueError(f"{path.name} repeats {twice} of the file before")
        tensors.update({str(key): value for key, value in content.items()})
    return tensors
