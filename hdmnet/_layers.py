"""Layers that say better what is computed than torch's own."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConcatConv2d(nn.Conv2d):
    """A 1 × 1 convolution of the concatenation of maps, without forming it.

    A part of 1 × 1 stands for a map that is the same everywhere.
    """

    def forward(self, parts: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """(B, C_i, h, w) or (B, C_i, 1, 1), the first of h × w → (B, C, h, w)."""
        weights = self.weight.split([part.shape[1] for part in parts], dim=1)
        first, *rest = zip(parts, weights, strict=True)
        return sum((F.conv2d(x, w) for x, w in rest), start=F.conv2d(*first, self.bias))
