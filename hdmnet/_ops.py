"""Resizing and numerical precision, said once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly, without antialiasing, to `size` = (H, W)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) by nearest neighbour to `size` = (H, W)."""
    return F.interpolate(x, size=tuple(size), mode="nearest")


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 if it is float16 or bfloat16, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which matrix products keep the precision of their operands.

    Cosines are divided by a temperature of 0.1 and exponentiated: the 3 digits of bfloat16 would
    become an error of 4 % there.
    """
    return torch.autocast(x.device.type, enabled=False)
