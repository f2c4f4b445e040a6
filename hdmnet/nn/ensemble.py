"""The base learner, and its merging with the matching network (from BAM, arXiv 2203.07615)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hdmnet._ops import Box, is_eager_on_cpu, no_autocast, upcast
from hdmnet.winograd import Winograd3x3


class PyramidPooling(nn.Module):
    """The pyramid pooling head of PSPNet, up to its last BatchNorm: the feature f5.

    Args:
        in_channels: Channels C of the input, at least as many as bins.
        out_channels: Channels of the output.
        bins: Grid sizes that the input is pooled to.

    Source: PSPNet (arXiv 1612.01105), pyramid pooling module.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 512, bins: tuple[int, ...] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        branch = in_channels // len(bins)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(in_channels, branch, 1, bias=False),
                nn.BatchNorm2d(branch),
                nn.ReLU(inplace=True),
            )
            for size in bins
        )
        # No ReLU: f5 is compared before it, and the base learner opens with it.
        self.fuse = nn.Sequential(
            nn.Conv2d(in_channels + branch * len(bins), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        # See `prepare`.
        self.register_buffer("own_kernel", None)
        self.winograd: Winograd3x3 | None = None

    own_kernel: Tensor | None

    def forward(self, x: Tensor, box: Box | None = None) -> Tensor:
        """Pool, and convolve.

        Args:
            x: (B, C, h, w) features.
            box: The part of the grid whose output is wanted, all of it if left out.

        Returns:
            (B, out_channels, h, w), of either sign; h and w are those of `box` if there is one.
        """
        box = Box(0, 0, x.shape[-2], x.shape[-1]) if box is None else box
        conv, norm = cast(nn.Conv2d, self.fuse[0]), self.fuse[1]
        own, *pooled = self._kernels()
        top, left = max(box.top - 1, 0), max(box.left - 1, 0)
        around = x[..., top : box.bottom + 1, left : box.right + 1]
        if self.winograd is not None and is_eager_on_cpu(x):
            y = self.winograd(around)
        else:
            y = F.conv2d(around, own, padding=1)
        y = y[..., box.top - top : box.bottom - top, box.left - left : box.right - left]
        # Convolution and upsampling are both linear: the nine taps are applied to the few pooled
        # cells, not to the thousands of positions that are interpolated from them.
        cells = [upcast(branch(x)) for branch in self.branches]
        with no_autocast(x):  # these few products cost nothing, and rounded they would add up
            rest = _convolve_upsampled(cells, [upcast(p) for p in pooled], x.shape[-2:], box)
            if conv.bias is not None:
                rest = rest + conv.bias[:, None, None]
        return norm(y + rest.to(y.dtype))

    def prepare(self) -> None:
        """Keep the kernel as inference wants it, which is done once and not to be trained after.

        The part that meets the input lies in one piece, apart from the rest, and is not copied by
        every call; on CPUs its transform takes two thirds of the direct convolution's time.
        """
        own, *pooled = self._kernels()
        conv = cast(nn.Conv2d, self.fuse[0])
        conv.weight = nn.Parameter(torch.cat(pooled, dim=1), requires_grad=False)
        self.own_kernel = own.contiguous(memory_format=torch.channels_last)
        self.winograd = Winograd3x3(own) if own.device.type == "cpu" else None

    def _kernels(self) -> tuple[Tensor, ...]:
        """The part of the 3 × 3 kernel that meets the input, and those that meet its poolings."""
        weight, own = cast(nn.Conv2d, self.fuse[0]).weight, self.own_kernel
        if own is None:
            own, weight = weight.tensor_split([self.in_channels], dim=1)
        return own, *weight.chunk(len(self.branches), dim=1)


def _convolve_upsampled(
    cells: Sequence[Tensor], weights: Sequence[Tensor], grid: Sequence[int], box: Box
) -> Tensor:
    """Σ conv2d(upsample(cells, grid, align_corners=True), weight, padding=1), inside of `box`."""
    products, rows = [], []
    for one, weight in zip(cells, weights, strict=True):
        # In this order no kernel in channels last is copied.
        taps = rearrange(weight, "o c i j -> (o i j) c") @ one.flatten(2)
        y, x = one.shape[-2:]
        order = "b (o i j) (y x) -> b (y i) (x j) o"
        taps = rearrange(taps, order, i=3, j=3, y=y, x=x)
        products.append(_taps(one, one.shape[-1], grid[1])[box.left : box.right] @ taps)
        rows.append(_taps(one, one.shape[-2], grid[0])[box.top : box.bottom])
    out = torch.cat(rows, dim=1) @ torch.cat(products, dim=1).transpose(1, 2)
    return rearrange(out, "b w h o -> b o h w")


def _taps(like: Tensor, cells: int, length: int) -> Tensor:
    """(length, cells · 3): what each cell weighs, by interpolation, in each tap of each output."""
    eye = torch.eye(cells, dtype=like.dtype, device=like.device)[None]
    weights = F.interpolate(eye, size=length, mode="linear", align_corners=True)[0]
    padded = F.pad(weights, (1, 1))
    taps = torch.stack([padded[:, tap : tap + length] for tap in range(3)])
    return rearrange(taps, "taps cells at -> at (cells taps)")


class BaseLearner(nn.Module):
    """Pixel classifier of the base classes, on the feature f5 of `PyramidPooling`.

    Args:
        in_channels: Channels of f5.
        classes: Number of base classes n, background not counted.
        dropout: Probability of dropping a channel.

    Source: BAM (arXiv 2203.07615), base learner.
    """

    def __init__(self, in_channels: int, classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, 1 + classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → logits (B, 1 + n, h, w), background first."""
        return self.classifier(self.dropout(x.relu()))


class ShotWeighting(nn.Module):
    """Weighted mean of the K support-query distances.

    Weights are learned for the K the model was trained with; for any other K they are uniform.

    Args:
        shots: Number of shots K_t the weights are trained with.
        hidden_dim: Hidden channels of the weighting; 0 for a single layer without bias.

    Source: BAM (arXiv 2203.07615), K-shot setting.
    """

    def __init__(self, shots: int, *, hidden_dim: int = 2) -> None:
        super().__init__()
        self.shots = shots
        self.weight: nn.Module
        if shots == 1:
            self.weight = nn.Identity()
        elif hidden_dim == 0:
            self.weight = nn.Conv2d(shots, shots, 1, bias=False)
        else:
            self.weight = nn.Sequential(
                nn.Conv2d(shots, hidden_dim, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden_dim, shots, 1),
            )

    def forward(self, distances: Tensor) -> Tensor:
        """(B, K) distances, K ≥ 1 → (B,) their weighted means."""
        if self.shots == 1 or distances.shape[1] != self.shots:
            return distances.mean(dim=1)
        with no_autocast(distances):
            # Kept for parity: weights stay in the sorted order, distances in their own.
            ordered = distances.sort(dim=1).values[:, :, None, None]
            ordered = ordered.to(next(self.weight.parameters()).dtype)
            weight = upcast(self.weight(ordered)).softmax(dim=1)[:, :, 0, 0]
        return (weight * distances).sum(dim=1)


class BaseMetaEnsemble(nn.Module):
    """Merges the matching network's prediction with the base learner's.

    Where the base learner sees a base class, the query cannot show the novel one.

    Args:
        shots: Number of shots the weights are trained with.
        shot_hidden_dim: See `ShotWeighting`.

    Source: BAM (arXiv 2203.07615), ensemble module.
    """

    def __init__(self, shots: int = 1, *, shot_hidden_dim: int = 2) -> None:
        super().__init__()
        self.shot_weighting = ShotWeighting(shots, hidden_dim=shot_hidden_dim)
        self.gram_merge = nn.Conv2d(2, 1, 1, bias=False)
        self.base_merge = nn.Conv2d(2, 1, 1, bias=False)
        for merge in (self.gram_merge, self.base_merge):
            with torch.no_grad():
                merge.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))

    def forward(
        self, meta: Tensor, base: Tensor, distances: Tensor, base_class: Tensor | None = None
    ) -> Tensor:
        """Merge two predictions on the same grid.

        Args:
            meta: (B, 2, h, w) logits of the matching network.
            base: (B, 1 + n, h, w) logits of the base learner.
            distances: (B, K) distances of `gram_distance`.
            base_class: (B,) long, in 0 … n - 1: the base class that each episode asks for, left out
                of the base map. For training, where the episode's class is one of the base classes.

        Returns:
            (B, 2, h, w) scores of background and object; not logits, and not normalised.

        Raises:
            ValueError: If `base_class` has another shape, or is out of range.
        """
        if base_class is not None:
            _check_base_class(base_class, base)
        meta_background, meta_object = upcast(meta).softmax(dim=1).split(1, dim=1)
        base_probability = upcast(base).softmax(dim=1)
        base_map = base_probability[:, 1:].sum(dim=1, keepdim=True)
        if base_class is not None:
            own = (base_class + 1).view(-1, 1, 1, 1).expand(-1, 1, *base.shape[-2:])
            base_map = base_map - base_probability.gather(1, own)
        distance = self.shot_weighting(distances).view(-1, 1, 1, 1).expand_as(base_map)
        background = _merge(self.gram_merge, meta_background, distance)
        foreground = _merge(self.gram_merge, meta_object, distance)
        background = _merge(self.base_merge, background, base_map)
        return torch.cat([background, foreground], dim=1)


def _check_base_class(base_class: Tensor, base: Tensor) -> None:
    if base_class.shape != base.shape[:1]:
        raise ValueError(
            f"base_class must be (B,) = ({base.shape[0]},), got {tuple(base_class.shape)}"
        )
    if torch.compiler.is_compiling():
        return  # a compiled graph must not depend on values
    classes = base.shape[1] - 1
    if not ((base_class >= 0) & (base_class < classes)).all():
        raise ValueError(
            f"base_class must be in 0 … {classes - 1}, without background, got "
            f"{base_class.tolist()}"
        )


def _merge(conv: nn.Conv2d, first: Tensor, second: Tensor) -> Tensor:
    with no_autocast(first):
        return conv(torch.cat([first, second], dim=1).to(conv.weight.dtype))
