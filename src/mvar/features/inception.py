"""Inception-v3 of the FID papers: TensorFlow's graph `inception-2015-12-05`, not torchvision's network.

Shapes: B images, H W pixels, C channels of a map, h w its sides, F = 2048 pooled features, S = 2023 spatial features,
K = 1008 classes.
Sources: Szegedy et al. 2016 (the network). Specific to the graph: 1008 classes; average pools that leave the padding
out of the count; a max pool in the last block, likely a slip, that all FIDs share (pytorch-fid, `inception.py`;
torch-fidelity, `feature_extractor_inceptionv3.py`). Outputs follow the ADM suite (guided-diffusion,
`evaluations/evaluator.py`), whose `mixed_6` is Mixed_6d here: the graph counts from Mixed_5b = `mixed` (torch-fidelity,
`convert_inception_weights.py`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.features.base import Extracted, take_weights
from mvar.ops.linear import convolution_relu

Pipeline = Literal["adm", "pytorch-fid"]
SIDE = 299
CLASSES = 1008
EPS = 1e-3
NORM = ("weight", "bias", "running_mean", "running_var")  # of a batch normalisation
SPATIAL_CHANNELS = 7  # 17 * 17 * 7 = 2023 features, about as many as are pooled
# Both published files of these weights have the classifier's bias, which no Inception score uses.
IGNORED = re.compile(r"fc\.bias|AuxLogits\..*|.*\.num_batches_tracked")

# The blocks: branches between bars, each a sequence of units name:channels[:HxW[/stride]], 1x1 by default and
# padded unless they have a stride. Units between commas take the same input. The last branch is the pooled one.
UNIT = re.compile(r"(\w+):(\d+)(?::(\d)x(\d)(?:/(\d))?)?")
FINE = "1x1:64 | 5x5_1:48 5x5_2:64:5x5 | 3x3dbl_1:64 3x3dbl_2:96:3x3 3x3dbl_3:96:3x3 | _pool:{pooled}"
TO_MIDDLE = "3x3:384:3x3/2 | 3x3dbl_1:64 3x3dbl_2:96:3x3 3x3dbl_3:96:3x3/2 |"
MIDDLE = (
    "1x1:192 | 7x7_1:{C} 7x7_2:{C}:1x7 7x7_3:192:7x1 | "
    "7x7dbl_1:{C} 7x7dbl_2:{C}:7x1 7x7dbl_3:{C}:1x7 7x7dbl_4:{C}:7x1 7x7dbl_5:192:1x7 | _pool:192"
)
TO_COARSE = "3x3_1:192 3x3_2:320:3x3/2 | 7x7x3_1:192 7x7x3_2:192:1x7 7x7x3_3:192:7x1 7x7x3_4:192:3x3/2 |"
COARSE = (
    "1x1:320 | 3x3_1:384 3x3_2a:384:1x3,3x3_2b:384:3x1 | "
    "3x3dbl_1:448 3x3dbl_2:384:3x3 3x3dbl_3a:384:1x3,3x3dbl_3b:384:3x1 | _pool:192"
)


class _Unit(nn.Module):
    """Convolution, batch normalisation and ReLU; with padding, the map keeps its sides."""

    def __init__(self, fan_in: int, fan_out: int, h: int, w: int, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        padding = (h // 2, w // 2) if padded else 0
        self.conv = nn.Conv2d(fan_in, fan_out, (h, w), stride, padding, bias=False)
        self.bn = nn.ParameterDict({name: torch.empty(fan_out) for name in NORM})

    def fold(self, dtype: torch.dtype) -> None:
        """Replace the normalisation by a scaled weight and a bias."""
        gamma_C, beta_C, mean_C, variance_C = (self.bn[name].double() for name in NORM)
        scale_C, weight = gamma_C / (variance_C + EPS).sqrt(), self.conv.weight.double()
        bias = beta_C - mean_C * scale_C
        self.conv.weight = nn.Parameter((weight * scale_C[:, None, None, None]).to(dtype), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        del self.bn

    def forward(self, x_BChw: Tensor) -> Tensor:
        return convolution_relu(x_BChw, self.conv)


class _Mixed(nn.Module):
    """Branches side by side, their maps concatenated.

    Args:
        C: channels of its input.
        pool: what the last branch starts with.
        branches: see `FINE`.
    """

    def __init__(self, C: int, pool: Callable[[Tensor], Tensor], branches: str) -> None:
        super().__init__()
        self.pool = pool
        self.branches: list[list[list[str]]] = []  # of each branch its steps, of each step the units
        for branch in branches.split("|"):
            fan_in, steps = C, []
            for step in branch.split():
                parsed = [match.groups("1") for match in UNIT.finditer(step)]
                for name, channels, h, w, stride in parsed:
                    unit = _Unit(fan_in, int(channels), int(h), int(w), int(stride), padded=stride == "1")
                    self.add_module(f"branch{name}", unit)
                fan_in = int(parsed[0][1])
                steps.append([f"branch{name}" for name, *_ in parsed])
            self.branches.append(steps)

    def forward(self, x_BChw: Tensor) -> Tensor:
        outputs = []
        for i, steps in enumerate(self.branches, 1):
            maps = [x_BChw if i < len(self.branches) else self.pool(x_BChw)]
            for names in steps:
                maps = [self.get_submodule(name)(maps[0]) for name in names]
            outputs += maps
        return torch.cat(outputs, 1)


def _average(x_BChw: Tensor) -> Tensor:
    return F.avg_pool2d(x_BChw, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x_BChw: Tensor) -> Tensor:
    return F.max_pool2d(x_BChw, 3, stride=1, padding=1)


def _halving(x_BChw: Tensor) -> Tensor:
    return F.max_pool2d(x_BChw, 3, 2)


class _Layers(nn.Module):
    """The graph as published, by the public files' names; built on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, 3, padded=True)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, 3)
        fine = ((192, 32), (256, 64), (288, 64))  # on 35x35 positions
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (_Mixed(C, _average, FINE.format(pooled=n)) for C, n in fine)
        self.Mixed_6a = _Mixed(288, _halving, TO_MIDDLE)
        middle = (_Mixed(768, _average, MIDDLE.format(C=C)) for C in (128, 160, 160, 192))  # on 17x17
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = middle
        self.Mixed_7a = _Mixed(768, _halving, TO_COARSE)
        self.Mixed_7b, self.Mixed_7c = _Mixed(1280, _average, COARSE), _Mixed(2048, _maximum, COARSE)  # on 8x8
        self.fc = nn.Linear(2048, CLASSES, bias=False)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `InceptionV3` takes."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in _Layers().state_dict().items()}


class InceptionV3(_Layers):
    """The network with each batch normalisation folded into its convolution, frozen.

    Args:
        tensors: in the key names of the public files pt_inception-2015-12-05-6726825d.pth (pytorch-fid) and
            weights-inception-2015-12-05-6726825d.pth (torch-fidelity).
        pipeline: how the published evaluation prepares images: "adm" resizes as TensorFlow 1 did and takes
            (x - 128) / 128 of bytes, as do the graph itself, the first FIDs, the ADM suite and torch-fidelity;
            "pytorch-fid" resizes with half-pixel centres and takes 2 x / 255 - 1. Their distances do not compare.
        dtype: of the convolutions.

    Raises:
        ValueError: not these weights: one line about the first wrong tensor.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], pipeline: Pipeline = "adm", dtype: torch.dtype = torch.float32
    ) -> None:
        with torch.device("meta"):
            super().__init__()
        self.pipeline = pipeline
        take_weights(self, {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)})
        for module in self.modules():
            if isinstance(module, _Unit):
                module.fold(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_B3HW: Tensor) -> Extracted:
        """Features of uint8 RGB images of any size."""
        x_BChw = self.prepared(images_B3HW).to(self.Conv2d_1a_3x3.conv.weight.dtype, memory_format=torch.channels_last)
        x_BChw = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BChw)))
        x_BChw = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halving(x_BChw)))
        x_BChw = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halving(x_BChw))))
        x_BChw = spatial_BChw = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x_BChw))))
        x_BChw = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x_BChw))))
        pooled_BF = x_BChw.float().mean((2, 3))
        # ADM's `mixed_6/conv:0`, whose channels come first in the block, after its ReLU.
        spatial_BS = spatial_BChw[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()
        # Without bias, as in ADM's evaluator, which multiplies by the graph's weight alone.
        logits_BK = pooled_BF @ self.fc.weight.T
        return Extracted(pooled_BF, spatial_BS, logits_BK.softmax(1))

    @property
    def resize(self) -> str:
        """What `prepared` does, in plain words."""
        how = "as TensorFlow 1" if self.pipeline == "adm" else "with half-pixel centres, as pytorch-fid"
        return f"{SIDE}x{SIDE}, bilinear {how}, not antialiased"

    def prepared(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, 299, 299) as the network sees them, float32 around [-1, 1]."""
        x_B3HW = images_B3HW.float()
        if self.pipeline == "adm":
            return (resize_tensorflow(x_B3HW, SIDE, SIDE) - 128) / 128
        return 2 * F.interpolate(x_B3HW / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def resize_tensorflow(x_BCHW: Tensor, h: int, w: int) -> Tensor:
    """Bilinear (B, C, h, w) as TensorFlow 1: row i is at i H / h, without half-pixel centres or antialiasing.

    That is PyTorch's rule for aligned corners, i (H - 1) / (h - 1), on images and results of one row and column more.
    Source: `tf.image.resize_bilinear` with `align_corners=False` (TensorFlow 1, kernels/image_resizer_state.h).
    """
    longer_BCHW = F.pad(x_BCHW, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(longer_BCHW, (h + 1, w + 1), mode="bilinear", align_corners=True)[:, :, :h, :w]
