"""A small CNN classifier that judges generated images: which class they show, and features to compare sets by.

A VGG-like stack (Simonyan & Zisserman 2015) with batch normalisation and global pooling, so that any small side works;
larger images are averaged down to 32x32.

Shapes: B batch, N images of a set, C channels, D features, K classes, h w height and width.
"""

from functools import partial
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.files import atomic_write
from mvar.ops.numerics import damage, has_fast_bfloat16
from mvar.progress import track
from mvar.tensor_files import write_tensors

SIDE = 32  # pixels that it sees at most
WIDTHS = (32, 64, 128)  # channels of the three levels; the last is D


class Judge(nn.Module):
    """Images to class logits.

    Args:
        num_classes: classes to tell apart, at least 2.
        channels: 3 judges colour; 1 averages RGB to grey first, which is quicker for grey sets.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes}: a judge tells at least 2 classes apart")
        if channels not in (1, 3):
            raise ValueError(f"channels = {channels}: choose 1 (grey) or 3 (colour)")
        self.channels = channels
        a, b, c = WIDTHS
        fine, middle, coarse = _conv(channels, a), (*_conv(a, b), *_conv(b, b)), (*_conv(b, c), *_conv(c, c))
        self.body = nn.Sequential(*fine, nn.MaxPool2d(2), *middle, nn.MaxPool2d(2), *coarse)
        self.head = nn.Linear(c, num_classes)

    def features(self, pixels_B3hw: Tensor) -> Tensor:
        """Pixels (B, 3, h, w), RGB in [0, 1], at least 8 pixels a side, to features (B, D = 128)."""
        if pixels_B3hw.ndim != 4 or pixels_B3hw.shape[1] != 3:
            raise ValueError(f"pixels have shape {tuple(pixels_B3hw.shape)}, expected (B, 3, h, w)")
        x_BChw = pixels_B3hw.mean(1, keepdim=True) if self.channels == 1 else pixels_B3hw
        if max(x_BChw.shape[2:]) > SIDE:
            x_BChw = F.adaptive_avg_pool2d(x_BChw, SIDE)
        x_BChw = (x_BChw * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.body(x_BChw).mean((2, 3)).float()

    def forward(self, pixels_B3hw: Tensor) -> Tensor:
        """Pixels (B, 3, h, w) in [0, 1] to logits (B, K)."""
        return self.head(self.features(pixels_B3hw))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        atomic_write(path, partial(write_tensors, tensors))

    @classmethod
    def load(cls, path: str | Path) -> "Judge":
        """Read what `save` wrote, in eval mode; raises ValueError for another file or weights that are not finite."""
        try:
            tensors = load_file(path)
            judge = cls(len(tensors["head.bias"]), tensors["body.0.weight"].shape[1])
            judge.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"judge = {str(path)!r}: not a judge's file; train one with train_judge") from error
        if problem := damage(tensors):
            raise ValueError(f"judge = {str(path)!r}: {problem}")
        return judge.eval()


def train_judge(
    pixels_NChw: Tensor,
    labels_N: Tensor,
    *,
    num_classes: int,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
) -> Judge:
    """Train a judge from scratch with AdamW, a one-cycle learning rate and random shifts of up to 2 pixels.

    Args:
        pixels_NChw: uint8 (N, 1 or 3, h, w); one channel trains a grey judge.
        labels_N: class indices below num_classes.
        seed: the same gives the same judge on the same machine.

    Raises:
        ValueError: pixels are not uint8 (N, 1 or 3, h, w), or labels do not fit them.
    """
    found = f"{pixels_NChw.dtype} {tuple(pixels_NChw.shape)}"
    if pixels_NChw.dtype != torch.uint8 or pixels_NChw.ndim != 4 or pixels_NChw.shape[1] not in (1, 3):
        raise ValueError(f"pixels are {found}, expected torch.uint8 (N, 1 or 3, h, w)")
    N = len(pixels_NChw)
    if N < 2 or labels_N.shape != (N,) or labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise ValueError(f"labels = {tuple(labels_N.shape)}: give {N} labels (at least 2) from 0 to {num_classes - 1}")
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(num_classes, pixels_NChw.shape[1])

    steps_per_epoch = -(-N // batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps_per_epoch, pct_start=0.2)
    judge.train()
    fast = has_fast_bfloat16(pixels_NChw.device)
    # tensor_split, unlike split, leaves no batch of a single image, which batch normalisation cannot take.
    epoch_batches = (torch.randperm(N, generator=rng).tensor_split(steps_per_epoch) for _ in range(epochs))
    batches = chain.from_iterable(epoch_batches)
    for rows_B in track(batches, epochs * steps_per_epoch, "training the classifier"):
        shifted_BChw = _shift(pixels_NChw[rows_B], rng).expand(-1, 3, -1, -1)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits_BK = judge(shifted_BChw.float() / 255)
        loss = F.cross_entropy(logits_BK.float(), labels_N[rows_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.inference_mode()
def accuracy(judge: Judge, pixels_NChw: Tensor, labels_N: Tensor, batch_size: int = 500) -> float:
    """The share of uint8 images (N, 1 or 3, h, w) whose most likely class is their label."""
    right = sum(
        (judge(pixels.expand(-1, 3, -1, -1).float() / 255).argmax(1) == labels).sum().item()
        for pixels, labels in zip(pixels_NChw.split(batch_size), labels_N.split(batch_size), strict=True)
    )
    return right / len(labels_N)


def _conv(fan_in: int, fan_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)


def _shift(pixels_BChw: Tensor, rng: torch.Generator, most: int = 2) -> Tensor:
    """Move each image by up to `most` pixels along each axis, repeating its border."""
    B, _, h, w = pixels_BChw.shape
    move_2B1 = torch.randint(-most, most + 1, (2, B, 1), generator=rng)
    rows_Bh = (torch.arange(h) + move_2B1[0]).clamp(0, h - 1)
    columns_Bw = (torch.arange(w) + move_2B1[1]).clamp(0, w - 1)
    image_B11 = torch.arange(B)[:, None, None]
    return pixels_BChw.permute(0, 2, 3, 1)[image_B11, rows_Bh[:, :, None], columns_Bw[:, None]].permute(0, 3, 1, 2)
