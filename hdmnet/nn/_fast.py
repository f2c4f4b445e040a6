"""Exact shortcuts of the formulas in the other files.

Each function begins with "Equals:" and the plain formula. `tests/test_fast_paths.py` compares the
two. Compiled and exported graphs must not depend on values or on the number of shots, so
`keep_foreground`, `foreground_window` and `max_cosine` are for eager mode only.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from hdmnet.nn._precision import no_autocast, upcast

logger = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK, SMALLEST_CHUNK = 128, 32
"""Support positions whose attention is in memory at a time, of one episode and of many: few enough
for a processor's cache."""
POSITIONS = 2048
"""Support positions that the prior compares at a time, so that memory does not grow with K."""


# Memory


def recompute(function: Callable[..., T], *inputs: object) -> T:
    """Keep no activations of a function: the backward pass computes them again.

    Equals: function(*inputs).
    """
    return checkpoint(function, *inputs, use_reentrant=False)


# Foreground only


def keep_foreground(x: Tensor, mask: Tensor, *, spare: int = 0) -> tuple[Tensor, Tensor]:
    """Drop positions outside of the mask.

    Equals: (x, mask), in sums over positions that are weighted by the mask.

    Each row keeps as many positions as the row with the most foreground has, so a row may keep
    some background. A compiled graph keeps all positions.

    Args:
        x: (..., N, C) values.
        mask: (..., N) weights, at least 0.
        spare: Number of background positions that every row keeps, if it has them.

    Returns:
        (..., n, C) and (..., n) with n ≤ N.
    """
    if torch.compiler.is_compiling():
        return x, mask
    longest = int((mask > 0).sum(dim=-1).amax())
    kept = mask.topk(min(max(longest + spare, 1), mask.shape[-1])).indices
    return x.gather(-2, kept[..., None].expand(*kept.shape, x.shape[-1])), mask.gather(-1, kept)


class Window(NamedTuple):
    """A part of a grid: rows `top` … `bottom` - 1 and columns `left` … `right` - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """Return this part of (..., h, w)."""
        return x[..., self.top : self.bottom, self.left : self.right]


def foreground_window(mask: Tensor) -> Window:
    """Return the smallest window that holds the foreground of all masks (..., h, w).

    Equals: the whole grid, for features that are multiplied by the mask afterwards.

    The prior also needs to know whether a mask has any background. If a mask would fill the window
    but not its grid, the window gets one more row or column.
    """
    masks = mask.reshape(-1, *mask.shape[-2:]) > 0
    rows, columns = masks.any(dim=2).any(dim=0), masks.any(dim=1).any(dim=0)
    if not rows.any():
        return Window(0, 0, 1, 1)
    (top, bottom), (left, right) = (
        (int(line.nonzero()[0]), int(line.nonzero()[-1]) + 1) for line in (rows, columns)
    )
    window = Window(top, left, bottom, right)
    if window.crop(masks).flatten(1).all(dim=1).any():
        height, width = mask.shape[-2:]
        if bottom - top < height:
            below = bottom < height
            return window._replace(top=top - (not below), bottom=bottom + below)
        if right - left < width:
            beside = right < width
            return window._replace(left=left - (not beside), right=right + beside)
    return window


# Matching


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every support position distribute its value over the query positions.

    Equals: softmax(query @ key.mT, dim=-2) @ value, if no score is above 50.

    The scores are bounded, so exp needs no maximum subtracted. The divisor of the softmax has one
    entry for each support position, so it divides the value and not the larger matrix.
    """
    chunks = [(key, value)]
    if not torch.compiler.is_compiling():
        size = max(CHUNK // len(query), SMALLEST_CHUNK)
        chunks = list(zip(key.split(size, dim=-2), value.split(size, dim=-2), strict=True))
    out = torch.zeros_like(query)
    for k, v in chunks:
        attention = (query @ k.to(query.dtype).mT).exp_()
        out = out + attention @ (v.to(query.dtype) / attention.sum(dim=-2)[..., None])
    return out


# Prior


def max_cosine(query: Tensor, unit: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Compare every query position with its most similar support position.

    Equals: amax_j (q_i · s_j) / (|q_i| |s_j| + eps), with s_j = unit_j · norm_j.

    Args:
        query: (B, C, h, w) features.
        unit: (B, K, n, C) support features of unit length, or 0.
        norm: (B, K, n) lengths.
        eps: Guard of the division.

    Returns:
        (B, h · w, K) similarities.
    """
    full = upcast(query)
    query_norm = full.norm(dim=1).flatten(1)[..., None]
    together = max(1, POSITIONS // (unit.shape[0] * unit.shape[2]))
    units = unit.split(together, dim=1)
    if not _is_negligible(eps, query_norm, norm):
        guards = (eps / n.where(n > 0, 1)[:, None] for n in norm.split(together, dim=1))
        best = [
            (inner_products(full, u) / (query_norm[..., None] + guard)).amax(-1)
            for u, guard in zip(units, guards, strict=True)
        ]
    elif query.dtype == full.dtype:
        # One division for each query position is enough, after the maximum.
        best = [inner_products(full, u).amax(-1) / query_norm for u in units]
    else:
        # Half-precision products keep three digits. Only the difference to the mean support is
        # multiplied in half precision. The products with the mean are added in float32.
        inside = (norm > 0).sum(dim=(1, 2)).clamp(min=1)
        mean = (unit.sum(dim=(1, 2)) / inside[:, None])[:, None, None]
        common = inner_products(full, mean)[..., 0]
        rest = (inner_products(query, (u - mean).to(query.dtype)) for u in units)
        # upcast: the maximum of bfloat16 takes a CPU several times as long.
        best = [(upcast(r).amax(-1) + common) / query_norm for r in rest]
    return torch.cat(best, dim=2)


def _is_negligible(eps: float, query_norm: Tensor, norm: Tensor) -> bool:
    """Whether `eps` changes no digit of the product of any two of these norms."""
    if norm.dtype != torch.float32:
        return False
    smallest = norm.where(norm > 0, torch.inf).amin()  # the cosine of a zero vector stays 0
    return bool(query_norm.amin() * smallest > eps * 2**24)


def inner_products(query: Tensor, support: Tensor) -> Tensor:
    """Multiply every query position by every support position.

    Equals: einsum("b c h w, b k n c -> b (h w) k n").

    As 1 × 1 convolutions these products take oneDNN, torch's CPU library, half of the time.

    Args:
        query: (B, C, h, w) features.
        support: (B, K, n, C) features.

    Returns:
        (B, h · w, K, n) products.
    """
    if query.device.type != "cpu":
        products = query.flatten(2).mT @ support.flatten(1, 2).mT
    else:
        pairs = zip(query.split(1), support.flatten(1, 2), strict=True)
        maps = [F.conv2d(q, s[..., None, None]) for q, s in pairs]
        # torch.cat of a single tensor would copy it.
        products = (maps[0] if len(maps) == 1 else torch.cat(maps)).flatten(2).mT
    return products.unflatten(2, support.shape[1:3])


# PSP head


def pyramid_convolution(
    x: Tensor,
    cells: Sequence[Tensor],
    own: Tensor,
    pooled: Tensor,
    bias: Tensor | None,
    window: Window,
) -> Tensor:
    """Convolve a map together with its upsampled poolings.

    Equals: conv2d(cat([x, *(upsample(c, (h, w)) for c in cells)]), cat([own, pooled]), bias,
    padding=1), inside of the window, with align_corners=True.

    Convolution and upsampling are linear. The nine taps are applied to the few pooled cells, not
    to the thousands of positions that are interpolated from them.

    Args:
        x: (B, C, h, w) map.
        cells: Poolings (B, c, s, s), all with the same number of channels c.
        own: (O, C, 3, 3), the kernel's part for x.
        pooled: (O, c · len(cells), 3, 3), the kernel's part for the poolings.
        bias: (O,) or None.
        window: The part of the grid to compute.

    Returns:
        (B, O, h', w') of the window.
    """
    top, left = max(window.top - 1, 0), max(window.left - 1, 0)
    around = x[..., top : window.bottom + 1, left : window.right + 1]
    y = F.conv2d(around, own, padding=1)
    y = y[..., window.top - top : window.bottom - top, window.left - left : window.right - left]
    dtype = torch.promote_types(y.dtype, torch.float32)
    rows = _taps([cell.shape[-2] for cell in cells], x.shape[-2], x.device, dtype)
    columns = _taps([cell.shape[-1] for cell in cells], x.shape[-1], x.device, dtype)
    products = []
    with no_autocast(x):  # few products, and their rounding errors would add up
        for cell, kernel, column in zip(
            cells, pooled.chunk(len(cells), dim=1), columns, strict=True
        ):
            # In this order no kernel in channels-last format is copied.
            kernel = rearrange(kernel.to(dtype), "o c i j -> (o i j) c")
            taps = kernel @ cell.to(dtype).flatten(2)
            order = "b (o i j) (y x) -> b (y i) (x j) o"
            taps = rearrange(taps, order, i=3, j=3, x=cell.shape[-1])
            products.append(column[window.left : window.right] @ taps)
        row = torch.cat(rows, dim=1)[window.top : window.bottom]
        rest = rearrange(row @ torch.cat(products, dim=1).transpose(1, 2), "b w h o -> b o h w")
        if bias is not None:
            rest = rest + bias[:, None, None]
    return y + rest.to(y.dtype)


def _taps(
    cells: Sequence[int], length: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Return the weights of cells in the taps of output positions, (length, cells · 3) each."""
    taps = []
    for count in cells:
        eye = torch.eye(count, dtype=dtype, device=device)[None]
        weights = F.interpolate(eye, size=length, mode="linear", align_corners=True)[0]
        padded = F.pad(weights, (1, 1))
        shifted = torch.stack([padded[:, tap : tap + length] for tap in range(3)])
        taps.append(rearrange(shifted, "taps cells at -> at (cells taps)"))
    return taps


# Folding for inference


def fold_norms(root: nn.Module) -> None:
    """Fold, in place, every BatchNorm into the convolution that alone feeds it.

    Equals: root(x) in eval mode.
    """
    try:
        nodes = list(_Tracer().trace(root).nodes)
    except Exception as error:  # torch.fx raises many types on code that depends on values
        logger.info("%s keeps its norms: torch.fx cannot trace it (%s)", type(root).__name__, error)
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        if node.op != "call_module" or calls[node.target] > 1:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, conv = root.get_submodule(str(node.target)), root.get_submodule(str(source.target))
        if not _is_foldable_norm(norm) or not _is_plain_convolution(conv):
            continue
        if calls[source.target] > 1 or len(source.users) > 1:
            continue
        activation = getattr(norm, "act", nn.Identity())  # timm has norms with an activation
        root.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
        root.set_submodule(str(node.target), activation)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Without this, torch.fx would trace into timm's subclasses of convolutions and norms.
        known = isinstance(m, nn.Conv2d | _BatchNorm)
        return known or super().is_leaf_module(m, module_qualified_name)


def _is_foldable_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    # Other subclasses, and parametrised convolutions, change their weight before they use it.
    return type(module) in (nn.Conv2d, Conv2dSame) and "weight" in dict(module.named_parameters())


class CollapsedBottleneck(nn.Module):
    """Convolutions 1 × 1, 3 × 3 and 1 × 1 with nothing between them, as one 3 × 3 convolution.

    Equals: last(middle(first(x))).

    The first bias is missing where the 3 × 3 kernel reaches over the border. Its share of the
    output is therefore a convolution of ones.
    """

    def __init__(self, first: nn.Conv2d, middle: nn.Conv2d, last: nn.Conv2d) -> None:
        super().__init__()
        # On the CPU, because not every device has float64.
        w1, w2, w3 = (conv.weight.cpu().double() for conv in (first, middle, last))
        b1, b2, b3 = (_bias(conv).cpu().double() for conv in (first, middle, last))
        w1, w3 = w1[:, :, 0, 0], w3[:, :, 0, 0]
        outer = einsum(w3, w2, "o m, m n i j -> o n i j")
        composed = {
            "weight": einsum(outer, w1, "o n i j, n c -> o c i j"),
            "ones_weight": einsum(outer, b1, "o n i j, n -> o i j")[:, None],
            "bias": w3 @ b2 + b3,
        }
        for name, value in composed.items():
            self.register_buffer(name, value.to(first.weight))

    weight: Tensor
    ones_weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C', h, w)."""
        ones = x.new_ones(1, 1, *x.shape[-2:])
        return F.conv2d(x, self.weight, self.bias, padding=1) + F.conv2d(
            ones, self.ones_weight, padding=1
        )


def collapse(bottleneck: nn.Module) -> nn.Module:
    """Merge the three convolutions of a bottleneck whose norms are folded.

    Equals: bottleneck. It is returned unchanged if a module is left between the convolutions.
    """
    first, middle, last, *rest = (m for m in bottleneck.children() if type(m) is not nn.Identity)
    if not all(_is_plain_convolution(m) for m in (first, middle, last)):
        return bottleneck
    collapsed = CollapsedBottleneck(
        cast(nn.Conv2d, first), cast(nn.Conv2d, middle), cast(nn.Conv2d, last)
    )
    return nn.Sequential(collapsed, *rest)


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
