"""A 3 × 3 convolution with 16 products where the direct one takes 36 (arXiv 1509.09308)."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

TILES = 300  # that are in memory at a time: few enough for a cache, enough for a matrix product


class Winograd3x3(nn.Module):
    """A 3 × 3 convolution with padding 1 of many channels, for inference on CPUs.

    F(2 × 2, 3 × 3): each tile d of 4 × 4 inputs, two apart, gives Y = Aᵀ [(G g Gᵀ) · (Bᵀ d B)] A,
    its 2 × 2 outputs, where the product is of each of the 16 elements and summed over channels.
    Twice as far from the exact result as the direct convolution: in float32, about 5e-7 of it.

    Args:
        weight: (O, C, 3, 3) kernel g.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308),
    section 4.1.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        w = weight.detach().cpu().double()  # on the CPU: not every device has float64
        g = w.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        kernel = einsum(g, w, g, "a i, o c i j, b j -> a b o c").flatten(0, 1)
        # Both, for the weights of a model under autocast are float32.
        self.register_buffer("kernel", kernel.to(weight).contiguous(), persistent=False)
        half = kernel.to(weight.device, torch.bfloat16).contiguous()
        self.register_buffer("half_kernel", half, persistent=False)

    kernel: Tensor
    half_kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of the weight's type or bfloat16 → (B, O, h, w); best in channels last."""
        kernel = self.half_kernel if x.dtype == torch.bfloat16 else self.kernel
        batch, _, height, width = x.shape
        x = rearrange(x, "b c h w -> b h w c")
        out = x.new_empty(batch, height + height % 2, width + width % 2, kernel.shape[1])
        step = 2 * max(1, TILES // (batch * (out.shape[2] // 2)))
        for top in range(0, out.shape[1], step):
            bottom = min(top + step, out.shape[1])
            # One more on each side, of which what lies beyond the map is 0.
            rows = x[:, max(top - 1, 0) : bottom + 1]
            above, below = int(top == 0), max(bottom + 1 - height, 0)
            padding = (0, 0, 1, 1 + width % 2, above, below)
            out[:, top:bottom] = _convolve(F.pad(rows, padding), kernel)
        return rearrange(out[:, :height, :width], "b h w o -> b o h w")


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Valid convolution of (B, 2 n + 2, 2 m + 2, C) with a transformed kernel (16, O, C)."""
    batch, height, width, channels = x.shape
    n, m = height // 2 - 1, width // 2 - 1
    tiles = x.new_empty(4, 4, batch, n, m, channels)
    for into, row in zip(tiles, _transform_input(x, n, dim=1), strict=True):
        torch.stack(_transform_input(row, m, dim=2), out=into)
    products = _multiply(tiles.view(16, -1, channels), kernel).view(4, 4, batch, n, m, -1)
    out = products.new_empty(batch, n, 2, m, 2, kernel.shape[1])
    for i, row in enumerate(_transform_output(products)):
        for j, part in enumerate(_transform_output(row)):
            out[:, :, i, :, j] = part
    return rearrange(out, "b n i m j o -> b (n i) (m j) o")


def _multiply(tiles: Tensor, kernel: Tensor) -> Tensor:
    """(16, N, C) and (16, O, C) → (16, N, O)."""
    if tiles.dtype == torch.bfloat16:
        return tiles @ kernel.mT
    maps = tiles[:, None, :, None].permute(0, 1, 4, 2, 3)
    pairs = zip(maps, kernel[..., None, None], strict=True)
    return torch.stack([F.conv2d(x, w)[0, :, :, 0].T for x, w in pairs])


def _transform_input(x: Tensor, count: int, *, dim: int) -> list[Tensor]:
    """Bᵀ d along one axis: of `count` tiles of 4 that begin 2 apart."""
    index = [slice(None)] * x.ndim
    d = []
    for i in range(4):
        index[dim] = slice(i, i + 2 * count, 2)
        d.append(x[tuple(index)])
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_output(y: Tensor) -> tuple[Tensor, Tensor]:
    """Aᵀ y along the first axis, of 4."""
    return y[0] + y[1] + y[2], y[1] - y[2] - y[3]
