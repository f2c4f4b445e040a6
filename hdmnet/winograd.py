"""A 3 × 3 convolution with 16 products where the direct one takes 36 (arXiv 1509.09308)."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

TILES = 300  # that are in memory at a time: few enough for a cache, enough for a matrix product


class Winograd3x3(nn.Module):
    """A 3 × 3 convolution with padding 1 of many channels, for inference.

    F(2 × 2, 3 × 3): each tile of 4 × 4 inputs is transformed by sums, multiplied with the
    transformed kernel, and summed to 2 × 2 outputs. Exact but for rounding; in bfloat16 twice as
    far from the exact result as the direct convolution.

    Args:
        weight: (O, C, 3, 3) kernel.
        dtype: What to compute in.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308),
    section 4.1.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        transform = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        # On the CPU: not every device has float64.
        g, w = transform.double(), weight.detach().cpu().double()
        kernel = einsum(g, w, g, "a i, o c i j, b j -> a b c o").flatten(0, 1)
        self.register_buffer("kernel", kernel.to(weight.device, dtype).contiguous())

    kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), fastest in channels last → (B, O, h, w)."""
        batch, _, height, width = x.shape
        x = rearrange(x, "b c h w -> b h w c")
        out = x.new_empty(batch, height + height % 2, width + width % 2, self.kernel.shape[-1])
        step = 2 * max(1, TILES // (batch * (out.shape[2] // 2)))
        for top in range(0, out.shape[1], step):
            bottom = min(top + step, out.shape[1])
            # One more on each side, of which what lies beyond the map is 0.
            rows = x[:, max(top - 1, 0) : bottom + 1]
            above, below = int(top == 0), max(bottom + 1 - height, 0)
            padding = (0, 0, 1, 1 + width % 2, above, below)
            out[:, top:bottom] = _convolve(F.pad(rows, padding), self.kernel)
        return rearrange(out[:, :height, :width], "b h w o -> b o h w")


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Valid convolution of (B, 2 n + 2, 2 m + 2, C) with a transformed kernel (16, C, O)."""
    batch, height, width, channels = x.shape
    n, m = height // 2 - 1, width // 2 - 1
    tiles = x.new_empty(4, 4, batch, n, m, channels)
    a, b, c, d = (x[:, i : i + 2 * n : 2] for i in range(4))
    for into, row in zip(tiles, (a - c, b + c, c - b, b - d), strict=True):
        e, f, g, h = (row[:, :, j : j + 2 * m : 2] for j in range(4))
        for one, (sign, left, right) in zip(
            into, ((-1, e, g), (1, f, g), (-1, g, f), (-1, f, h)), strict=True
        ):
            torch.add(left, right, alpha=sign, out=one)
    products = (tiles.view(16, -1, channels) @ kernel).view(4, 4, batch, n, m, -1)
    out = products.new_empty(batch, n, 2, m, 2, kernel.shape[-1])
    for i, row in enumerate(_reduce(products)):
        for j, part in enumerate(_reduce(row)):
            out[:, :, i, :, j] = part
    return rearrange(out, "b n i m j o -> b (n i) (m j) o")


def _reduce(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c, d = x
    return a + b + c, b - c - d
