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

    Cosines are divided by a temperature of 0.1 and exponentiated: too much for bfloat16's 3 digits.
    """
    return torch.autocast(x.device.type, enabled=False)


def keep_foreground(x: Tensor, mask: Tensor, *, spare: int = 0) -> tuple[Tensor, Tensor]:
    """Drop positions outside of the mask: what is multiplied by 0 need not be computed.

    Rows keep as many positions as the fullest one has in its mask, so some outside may remain.
    A compiled graph keeps them all, for its shapes must not depend on the data.

    Args:
        x: (..., N, C) values.
        mask: (..., N) weights, at least 0.
        spare: Number of positions outside of the mask that every row keeps, if it has them.

    Returns:
        (..., n, C) and (..., n) with n ≤ N.
    """
    if torch.compiler.is_compiling():
        return x, mask
    longest = int((mask > 0).sum(dim=-1).amax())
    kept = mask.topk(min(max(longest + spare, 1), mask.shape[-1])).indices
    return x.gather(-2, kept[..., None].expand(*kept.shape, x.shape[-1])), mask.gather(-1, kept)
