"""Resizing, numerical precision and what a mask leaves to compute, said once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly, without antialiasing, to `size` = (H, W)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) by nearest neighbour to `size` = (H, W), as `F.interpolate` does.

    Spelled out, because ONNX rounds otherwise where a sample falls between two pixels.
    """
    rows = _nearest_index(x, x.shape[-2], size[0])
    columns = _nearest_index(x, x.shape[-1], size[1])
    return x.index_select(-2, rows).index_select(-1, columns)


def _nearest_index(x: Tensor, length: int, target: int) -> Tensor:
    """(target,) long: floor(i · length / target), the quotient rounded to float32 first."""
    scale = torch.scalar_tensor(length, dtype=torch.float32, device=x.device) / target
    position = torch.arange(target, dtype=torch.float32, device=x.device) * scale
    return position.long().clamp(max=length - 1)


def widen_small(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Let every object show on a grid h × w, however small.

    An object that falls between the positions of the grid would take no part in anything: it gets
    all cells that it touches, each from one position to the next. The paper has nothing of that:
    the benchmarks it uses leave out small objects.

    Args:
        mask: (B, K, H, W) in {0, 1}.
        grid: Height and width.

    Returns:
        The mask, unchanged where an object shows.
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
    """The cell of each pixel, (length,), and for each cell its pixels, (target, length) in {0, 1}.

    A cell begins where `nearest` takes its sample.
    """
    starts = _nearest_index(x, length, target)
    pixels = torch.arange(length, device=x.device)
    cells = (starts[None] <= pixels[:, None]).sum(dim=1) - 1
    members = cells[None] == torch.arange(target, device=x.device)[:, None]
    return cells, members.to(x.dtype)


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 if it is float16 or bfloat16, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which matrix products keep the precision of their operands.

    Cosines are divided by a temperature of 0.1 and exponentiated: too much for bfloat16's 3 digits.
    """
    return torch.autocast(x.device.type, enabled=False)


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether oneDNN runs what is called, as it is called."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def inner_products(x: Tensor, vectors: Tensor) -> Tensor:
    """(B, C, h, w) and (B, n, C) → (B, h · w, n): every vector times every position of `x`."""
    if not is_eager_on_cpu(x):
        return x.flatten(2).mT @ vectors.mT
    # The same products as 1 × 1 convolutions, which take oneDNN half of the time.
    pairs = zip(x.split(1), vectors, strict=True)
    products = [F.conv2d(one, v[..., None, None]) for one, v in pairs]
    products = products if len(products) == 1 else [torch.cat(products)]  # of one it would copy
    return products[0].flatten(2).mT


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


class Box(NamedTuple):
    """A part of a grid: rows `top` … `bottom` - 1 and columns `left` … `right` - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """This part of (..., h, w)."""
        return x[..., self.top : self.bottom, self.left : self.right]


def foreground_box(mask: Tensor) -> Box:
    """The smallest box around the foreground of all masks (..., h, w).

    One row or column larger where else some mask would fill the box but not its grid: that mask's
    background matters too.
    """
    masks = mask.reshape(-1, *mask.shape[-2:]) > 0
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    if not rows.any():
        return Box(0, 0, 1, 1)
    top, bottom = _extent(rows.any(dim=0))
    left, right = _extent(columns.any(dim=0))
    box = Box(top, left, bottom, right)
    if box.crop(masks).flatten(1).all(dim=1).any():
        height, width = mask.shape[-2:]
        if bottom - top < height:
            box = box._replace(bottom=bottom + 1) if bottom < height else box._replace(top=top - 1)
        elif right - left < width:
            box = box._replace(right=right + 1) if right < width else box._replace(left=left - 1)
    return box


def _extent(line: Tensor) -> tuple[int, int]:
    """First index and last index + 1 of the True values of (N,)."""
    indices = line.nonzero()
    return int(indices[0]), int(indices[-1]) + 1
