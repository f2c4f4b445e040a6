"""Layers that say better what is computed than torch's own."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConcatConv2d(nn.Conv2d):
    """A 1 × 1 convolution of the concatenation of maps, without forming it.

    A part of 1 × 1 stands for a map that is the same everywhere.

    Args:
        in_channels: Channels of all parts.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """(B, C_i, h, w) or (B, C_i, 1, 1), the first of h × w → (B, C, h, w)."""
        weights = self.weight.split([part.shape[1] for part in parts], dim=1)
        first, *rest = (F.conv2d(x, w) for x, w in zip(parts, weights, strict=True))
        return sum(rest, start=first)
