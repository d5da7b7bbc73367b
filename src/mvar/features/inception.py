"""Inception-v3 of the FID papers: TensorFlow's graph `inception-2015-12-05`, not torchvision's network.

Shapes: B images, H W pixels, C channels of a map, h w its sides, F = 2048 pooled features, S = 2023 spatial features,
K = 1008 classes.
Sources: Szegedy et al. 2016 (the network). What is the graph's own: 1008 classes; average pools that leave the padding
out of the count; a max pool in the last block, likely a slip, that all FIDs share (pytorch-fid, `inception.py`;
torch-fidelity, `feature_extractor_inceptionv3.py`). What is taken of it: the ADM suite (guided-diffusion,
`evaluations/evaluator.py`). Its `mixed_6` is Mixed_6d here: the graph counts from Mixed_5b = `mixed` (torch-fidelity,
`convert_inception_weights.py`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.features.base import take_weights
from mvar.ops.linear import convolution_relu

Pipeline = Literal["adm", "pytorch-fid"]
SIDE = 299
CLASSES = 1008
EPS = 1e-3
SPATIAL_CHANNELS = 7  # 17 * 17 * 7 = 2023 features, about as many as are pooled
# Both published files of these weights have the classifier's bias, which no Inception score uses.
IGNORED = re.compile(r"fc\.bias|AuxLogits\..*|.*\.num_batches_tracked")


class Outputs(NamedTuple):
    """What evaluation takes from the network, in float32."""

    pooled_BF: Tensor
    spatial_BS: Tensor  # the channels of a place lie together, as in the public references
    probabilities_BK: Tensor


class _Layers(nn.Module):
    """The graph as it is published, by the public files' names; built on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, 3, padded=True)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _Fine(192, 32), _Fine(256, 64), _Fine(288, 64)
        self.Mixed_6a = _ToMiddle()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_Middle, (128, 160, 160, 192))
        self.Mixed_7a = _ToCoarse()
        self.Mixed_7b, self.Mixed_7c = _Coarse(1280, _average), _Coarse(2048, _maximum)
        self.fc = nn.Linear(2048, CLASSES, bias=False)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `InceptionV3` takes."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in _Layers().state_dict().items()}


class InceptionV3(_Layers):
    """The network with each batch normalisation folded into its convolution, frozen.

    Args:
        tensors: in the key names of the public files pt_inception-2015-12-05-6726825d.pth (pytorch-fid) and
            weights-inception-2015-12-05-6726825d.pth (torch-fidelity), which are alike: `Conv2d_1a_3x3.conv.weight`,
            `Conv2d_1a_3x3.bn.{weight,bias,running_mean,running_var}`, ..., `Mixed_7c.branch_pool.*`, `fc.weight`.
            `fc.bias`, `AuxLogits.*` and `*.num_batches_tracked` are ignored.
        pipeline: how the published evaluation prepares images: "adm" resizes as TensorFlow 1 did and takes
            (x - 128) / 128 of bytes, as the graph itself does, so the first FIDs, the ADM suite and torch-fidelity;
            "pytorch-fid" resizes with half-pixel centres and takes 2 x / 255 - 1. Their distances do not compare.
        dtype: of the convolutions.

    Raises:
        ValueError: an unknown pipeline, or not these weights: one line about the first wrong tensor.
    """

    def __init__(
        self, tensors: Mapping[str, Any], pipeline: Pipeline = "adm", dtype: torch.dtype = torch.float32
    ) -> None:
        if pipeline not in get_args(Pipeline):
            raise ValueError(f"pipeline = {pipeline!r}: give {' or '.join(get_args(Pipeline))}")
        with torch.device("meta"):
            super().__init__()
        self.pipeline = pipeline
        take_weights(self, {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)})
        for module in self.modules():
            if isinstance(module, _Unit):
                module.fold(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_B3HW: Tensor) -> Outputs:
        """Features of uint8 RGB images of any size."""
        x_BChw = self.prepared(images_B3HW).to(self.Conv2d_1a_3x3.conv.weight.dtype, memory_format=torch.channels_last)
        x_BChw = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BChw)))
        x_BChw = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x_BChw, 3, 2)))
        x_BChw = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x_BChw, 3, 2))))
        x_BChw = spatial_BChw = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x_BChw))))
        x_BChw = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x_BChw))))
        pooled_BF = x_BChw.float().mean((2, 3))
        # ADM's `mixed_6/conv:0`, whose channels come first in the block, after its ReLU.
        spatial_BS = spatial_BChw[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()
        # Without bias, as in ADM's evaluator, which multiplies by the graph's weight alone.
        logits_BK = pooled_BF @ self.fc.weight.T
        return Outputs(pooled_BF, spatial_BS, logits_BK.softmax(1))

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
    """Bilinear (B, C, h, w) as TensorFlow 1: row i lies at i H / h, without half-pixel centres or antialiasing.

    That is PyTorch's rule for aligned corners, i (H - 1) / (h - 1), on images and results of one row and column more.
    Source: `tf.image.resize_bilinear` with `align_corners=False` (TensorFlow 1, kernels/image_resizer_state.h).
    """
    longer_BCHW = F.pad(x_BCHW, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(longer_BCHW, (h + 1, w + 1), mode="bilinear", align_corners=True)[:, :, :h, :w]


class _Norm(nn.Module):
    """The tensors of a batch normalisation, until they are folded into a convolution."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(C)), nn.Parameter(torch.empty(C))
        self.running_mean, self.running_var = nn.Parameter(torch.empty(C)), nn.Parameter(torch.empty(C))


class _Unit(nn.Module):
    """A convolution with its batch normalisation, and ReLU; padded, it keeps the map's sides."""

    def __init__(self, fan_in: int, fan_out: int, h: int, w: int, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        padding = (h // 2, w // 2) if padded else 0
        self.conv = nn.Conv2d(fan_in, fan_out, (h, w), stride, padding, bias=False)
        self.bn = _Norm(fan_out)

    def fold(self, dtype: torch.dtype) -> None:
        """Scale the convolution's weight and give it a bias instead of the normalisation."""
        norm, weight = self.bn.double(), self.conv.weight.double()
        scale_C = norm.weight / (norm.running_var + EPS).sqrt()
        self.conv.weight = _frozen(weight * scale_C[:, None, None, None], dtype)
        self.conv.bias = _frozen(norm.bias - norm.running_mean * scale_C, dtype)
        del self.bn

    def forward(self, x_BChw: Tensor) -> Tensor:
        return convolution_relu(x_BChw, self.conv)


class _Fine(nn.Module):
    """Mixed_5*, on 35x35 places."""

    def __init__(self, C: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(C, 64, 1, 1)
        self.branch5x5_1 = _Unit(C, 48, 1, 1)
        self.branch5x5_2 = _Unit(48, 64, 5, 5, padded=True)
        self.branch3x3dbl_1 = _Unit(C, 64, 1, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, 3, padded=True)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, 3, padded=True)
        self.branch_pool = _Unit(C, pooled, 1, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        five_BChw = self.branch5x5_2(self.branch5x5_1(x_BChw))
        three_BChw = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BChw)))
        return torch.cat((self.branch1x1(x_BChw), five_BChw, three_BChw, self.branch_pool(_average(x_BChw))), 1)


class _ToMiddle(nn.Module):
    """Mixed_6a, from 35x35 to 17x17 places."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Unit(288, 384, 3, 3, stride=2)
        self.branch3x3dbl_1 = _Unit(288, 64, 1, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, 3, padded=True)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        double_BChw = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BChw)))
        return torch.cat((self.branch3x3(x_BChw), double_BChw, F.max_pool2d(x_BChw, 3, 2)), 1)


class _Middle(nn.Module):
    """Mixed_6b to 6e, on 17x17 places; C channels inside the long branches."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(768, 192, 1, 1)
        self.branch7x7_1 = _Unit(768, C, 1, 1)
        self.branch7x7_2 = _Unit(C, C, 1, 7, padded=True)
        self.branch7x7_3 = _Unit(C, 192, 7, 1, padded=True)
        self.branch7x7dbl_1 = _Unit(768, C, 1, 1)
        self.branch7x7dbl_2 = _Unit(C, C, 7, 1, padded=True)
        self.branch7x7dbl_3 = _Unit(C, C, 1, 7, padded=True)
        self.branch7x7dbl_4 = _Unit(C, C, 7, 1, padded=True)
        self.branch7x7dbl_5 = _Unit(C, 192, 1, 7, padded=True)
        self.branch_pool = _Unit(768, 192, 1, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        seven_BChw = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_BChw)))
        double_BChw = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_BChw)))
        double_BChw = self.branch7x7dbl_5(self.branch7x7dbl_4(double_BChw))
        return torch.cat((self.branch1x1(x_BChw), seven_BChw, double_BChw, self.branch_pool(_average(x_BChw))), 1)


class _ToCoarse(nn.Module):
    """Mixed_7a, from 17x17 to 8x8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Unit(768, 192, 1, 1)
        self.branch3x3_2 = _Unit(192, 320, 3, 3, stride=2)
        self.branch7x7x3_1 = _Unit(768, 192, 1, 1)
        self.branch7x7x3_2 = _Unit(192, 192, 1, 7, padded=True)
        self.branch7x7x3_3 = _Unit(192, 192, 7, 1, padded=True)
        self.branch7x7x3_4 = _Unit(192, 192, 3, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        three_BChw = self.branch3x3_2(self.branch3x3_1(x_BChw))
        seven_BChw = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_BChw)))
        return torch.cat((three_BChw, self.branch7x7x3_4(seven_BChw), F.max_pool2d(x_BChw, 3, 2)), 1)


class _Coarse(nn.Module):
    """Mixed_7b and 7c, on 8x8 places; only 7c's last branch takes the maximum."""

    def __init__(self, C: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Unit(C, 320, 1, 1)
        self.branch3x3_1 = _Unit(C, 384, 1, 1)
        self.branch3x3_2a = _Unit(384, 384, 1, 3, padded=True)
        self.branch3x3_2b = _Unit(384, 384, 3, 1, padded=True)
        self.branch3x3dbl_1 = _Unit(C, 448, 1, 1)
        self.branch3x3dbl_2 = _Unit(448, 384, 3, 3, padded=True)
        self.branch3x3dbl_3a = _Unit(384, 384, 1, 3, padded=True)
        self.branch3x3dbl_3b = _Unit(384, 384, 3, 1, padded=True)
        self.branch_pool = _Unit(C, 192, 1, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        three_BChw = self.branch3x3_1(x_BChw)
        double_BChw = self.branch3x3dbl_2(self.branch3x3dbl_1(x_BChw))
        branches = (
            self.branch1x1(x_BChw),
            self.branch3x3_2a(three_BChw),
            self.branch3x3_2b(three_BChw),
            self.branch3x3dbl_3a(double_BChw),
            self.branch3x3dbl_3b(double_BChw),
            self.branch_pool(self.pool(x_BChw)),
        )
        return torch.cat(branches, 1)


def _frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype), requires_grad=False)


def _average(x_BChw: Tensor) -> Tensor:
    return F.avg_pool2d(x_BChw, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x_BChw: Tensor) -> Tensor:
    return F.max_pool2d(x_BChw, 3, stride=1, padding=1)
