"""Resizing of feature maps and masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly, without antialiasing, to `size` = (H, W)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) by nearest neighbour to `size` = (H, W), as `F.interpolate` does.

    The index is computed here, because ONNX rounds differently where a sample falls between two
    pixels.
    """
    rows = _nearest_index(x, x.shape[-2], size[0])
    columns = _nearest_index(x, x.shape[-1], size[1])
    return x.index_select(-2, rows).index_select(-1, columns)


def _nearest_index(x: Tensor, length: int, target: int) -> Tensor:
    """(target,) long: floor(i · length / target), with the quotient rounded to float32 first."""
    scale = torch.scalar_tensor(length, dtype=torch.float32, device=x.device) / target
    position = torch.arange(target, dtype=torch.float32, device=x.device) * scale
    return position.long().clamp(max=length - 1)


def widen_small(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Widen every object that `nearest` would lose on the grid h × w.

    An object that lies between the samples of the grid would take no part in the matching. It
    grows to all grid cells that it touches. A cell reaches from one sample to the next. The paper
    does not treat this case: its benchmarks leave out small objects.

    Args:
        mask: (B, K, H, W) in {0, 1}.
        grid: Height and width.

    Returns:
        (B, K, H, W) mask. Objects that the grid shows are unchanged.
    """
    missed = (mask.amax((-2, -1)) > 0) & (nearest(mask, grid).amax((-2, -1)) == 0)
    if not torch.compiler.is_compiling() and not missed.any():
        return mask
    rows, row_cells = _cells(mask, mask.shape[-2], grid[0])
    columns, column_cells = _cells(mask, mask.shape[-1], grid[1])
    touched = (row_cells @ mask @ column_cells.mT > 0).to(mask.dtype)
    widened = touched.index_select(-2, rows).index_select(-1, columns)
    return torch.where(missed[..., None, None], widened, mask)


def _cells(x: Tensor, length: int, target: int) -> tuple[Tensor, Tensor]:
    """Return the cell of each pixel, (length,), and the pixels of each cell, (target, length)."""
    starts = _nearest_index(x, length, target)
    pixels = torch.arange(length, device=x.device)
    cells = (starts[None] <= pixels[:, None]).sum(dim=1) - 1
    members = cells[None] == torch.arange(target, device=x.device)[:, None]
    return cells, members.to(x.dtype)
