"""Features of images for evaluation: which network sees them, how they are resized for it, and from which weights.

Shapes: B images, H W pixels, F pooled features, S spatial features, K classes.
"""

from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mvar.features.base import Extracted, read_weights
from mvar.features.effnet import EffNetLite0
from mvar.features.inception import SIDE, InceptionV3, Pipeline
from mvar.files import file_sha256

FEATURES = ("effnet-lite0", "inception")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PUBLIC_FILE = "pt_inception-2015-12-05-6726825d.pth"
PUBLIC_SHA256 = "6726825d"  # how its hash begins, as its name says
SMALL, LARGE = 64, 224  # sides that EfficientNet-Lite0 sees
VERSION = 2  # increased when the same weights give other features; caches of other versions are not read
FRAME = 32  # smaller images are framed with black to this side first, as is customary for 28x28


class Extractor:
    """Images to features; an image's features are the same in any batch, up to float rounding.

    Attributes:
        distance: what the Frechet distance in these features is called.
        weights_sha256: of the weights file's bytes.
        resize: how images are resized for the network, in plain words.
        dtype: of the convolutions.
    """

    network: str
    distance: str
    dimensions: int  # F

    def __init__(self, weights: Path, resize: str, device: str | torch.device | None, dtype: str) -> None:
        self.weights_sha256 = file_sha256(weights)
        self.resize = resize
        self.device = torch.device(device or "cpu")
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, images_B3HW: Tensor) -> Extracted:
        """Features, on the extractor's device; raises ValueError unless images are uint8 (B, 3, H, W)."""
        if images_B3HW.dtype != torch.uint8 or images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3:
            found = f"{images_B3HW.dtype} {tuple(images_B3HW.shape)}"
            raise ValueError(f"images are {found}, expected torch.uint8 (B, 3, H, W)")
        # Convolutions in TF32, CUDA's default, would be float32 in name only.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return self._extract(images_B3HW.to(self.device))

    def describe(self) -> dict[str, Any]:
        """What a report records: features of extractors that differ in any of it do not compare."""
        names = ("network", "distance", "weights_sha256", "resize", "dimensions", "dtype")
        return {name: getattr(self, name) for name in names}

    def _extract(self, images_B3HW: Tensor) -> Extracted:
        raise NotImplementedError


class InceptionExtractor(Extractor):
    """Inception-v3 of the FID papers; see `find_extractor` for the arguments."""

    network, distance, dimensions = "inception-v3", "FID", 2048

    def __init__(self, weights: Path, device: str | torch.device | None, dtype: str, pipeline: Pipeline) -> None:
        network = InceptionV3(read_weights(weights), pipeline, DTYPES[dtype])
        super().__init__(weights, network.resize, device, dtype)
        self._network = network.to(self.device)

    def _extract(self, images_B3HW: Tensor) -> Extracted:
        return self._network(images_B3HW)


class EffNetExtractor(Extractor):
    """EfficientNet-Lite0, which sees small images enlarged; see `find_extractor` for the arguments."""

    network, distance, dimensions = "effnet-lite0", "FD-EffNetLite0", 320

    def __init__(self, device: str | torch.device | None, dtype: str, side: int | None) -> None:
        network = EffNetLite0()
        size = f"{side}x{side}" if side else f"{SMALL}x{SMALL}, images above that {LARGE}x{LARGE}"
        resize = f"{size}, bilinear, antialiased when reduced; below {FRAME}x{FRAME} framed with black to that first"
        super().__init__(network.weights, resize, device, dtype)
        self._network = network.to(self.device, DTYPES[dtype])
        self._side = side

    def _extract(self, images_B3HW: Tensor) -> Extracted:
        pixels = images_B3HW.float() / 255
        h, w = pixels.shape[-2:]
        side = self._side or (SMALL if max(h, w) <= SMALL else LARGE)
        if max(h, w) < FRAME:
            top, left = (FRAME - h) // 2, (FRAME - w) // 2
            pixels = functional.pad(pixels, (left, FRAME - w - left, top, FRAME - h - top))
        reduced = max(pixels.shape[-2:]) > side
        pixels = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=reduced)
        return Extracted(self._network(pixels))


def find_extractor(
    features: str,
    weights: str | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    side: int | None = None,
    pipeline: Pipeline = "adm",
) -> Extractor:
    """An extractor by the name of its features.

    Args:
        features: "effnet-lite0" or "inception".
        weights: Inception's file, .pth or .safetensors; EfficientNet-Lite0 brings its own.
        device: None is the CPU.
        dtype: of the convolutions, "float32" or "bfloat16".
        side: pixels that EfficientNet-Lite0 sees; None is 64 for images up to 64 pixels and 224 for larger ones.
            Inception always sees 299.
        pipeline: how images are prepared for Inception, see `InceptionV3`.

    Raises:
        ValueError: an unknown name, weights that are missing or of another network, or an option that the network does
            not have; one line.
    """
    options = {"features": (features, FEATURES), "dtype": (dtype, DTYPES), "pipeline": (pipeline, get_args(Pipeline))}
    for name, (value, choices) in options.items():
        if value not in choices:
            raise ValueError(f"{name} = {value!r}: give {' or '.join(choices)}")
    if features == "effnet-lite0":
        if weights is not None:
            raise ValueError(f"weights = {weights!r}: effnet-lite0 brings its own; leave --weights out")
        if side is not None and side < FRAME:
            raise ValueError(f"side = {side}: effnet-lite0 sees {FRAME} pixels or more; leave it out for {SMALL}")
        return EffNetExtractor(device, dtype, side)
    if side is not None:
        raise ValueError(f"side = {side}: inception always sees {SIDE} pixels; leave it out")
    if weights is None:
        raise ValueError(f"weights = None: inception needs its file; give --weights {PUBLIC_FILE} (pytorch-fid's)")
    try:
        return InceptionExtractor(Path(weights), device, dtype, pipeline)
    except ValueError as error:
        raise ValueError(f"weights = {weights!r}: {error}; give {PUBLIC_FILE} (pytorch-fid's)") from error
