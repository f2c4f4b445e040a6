"""The pyramid pooling head of PSPNet (arXiv 1612.01105): the feature f5."""

from typing import cast

import torch
from torch import Tensor, nn

from hdmnet.nn import _fast
from hdmnet.nn._checks import check_shapes
from hdmnet.nn._resize import upsample


class PyramidPooling(nn.Module):
    """The pyramid pooling head of PSPNet, up to its last BatchNorm.

    f5 = BN(conv3×3([x, up(ReLU(BN(conv1×1(pool_s(x))))) for each grid size s])).

    There is no ReLU at the end: the prior compares f5 without it, and the base learner applies it.

    Args:
        in_channels: Channels C of the input, at least as many as `bins` has entries.
        out_channels: Channels of the output.
        bins: Grid sizes s that the input is pooled to.

    Attributes:
        fast: Whether to take the exact shortcut. False computes the formula as written.

    Example:
        >>> PyramidPooling(2048)(torch.rand(2, 2048, 60, 60)).shape
        torch.Size([2, 512, 60, 60])

    Source: PSPNet (arXiv 1612.01105), pyramid pooling module.
    """

    fast = True
    own_kernel: Tensor | None

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
        self.fuse = nn.Sequential(
            nn.Conv2d(in_channels + branch * len(bins), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.register_buffer("own_kernel", None, persistent=False)  # `fuse_` sets it

    def forward(self, x: Tensor, box: _fast.Window | None = None) -> Tensor:
        """Pool and convolve.

        Args:
            x: (B, C, h, w) features.
            box: The part of the grid to return. None returns the whole grid.

        Returns:
            (B, out_channels, h, w), of either sign. With a `box`, h and w are those of the box.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes(f"B, {self.in_channels}, h, w", x=x)
        cells = [branch(x) for branch in self.branches]
        if not self.fast:
            maps = [upsample(cell, x.shape[-2:], align_corners=True) for cell in cells]
            f5 = self.fuse(torch.cat([x, *maps], dim=1))
            return f5 if box is None else box.crop(f5)
        conv, norm = cast(nn.Conv2d, self.fuse[0]), self.fuse[1]
        box = box or _fast.Window(0, 0, x.shape[-2], x.shape[-1])
        own, pooled = conv.weight[:, : self.in_channels], conv.weight[:, self.in_channels :]
        own = own if self.own_kernel is None else self.own_kernel
        return norm(_fast.pyramid_convolution(x, cells, own, pooled, conv.bias, box))

    def fuse_(self) -> None:
        """Fold the norms in place, for inference, and cut the kernel for x out of the whole one."""
        for part in (*self.branches, self.fuse):
            _fast.fold_norms(part)
        # PyTorch would copy a slice of the kernel in every call.
        self.own_kernel = cast(nn.Conv2d, self.fuse[0]).weight[:, : self.in_channels].contiguous()
