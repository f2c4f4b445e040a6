"""The Winograd convolution against the direct one."""

import pytest
import torch
import torch.nn.functional as F

from hdmnet import winograd
from hdmnet.winograd import Winograd3x3


@pytest.mark.parametrize("tiles", [1, 5, 300])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (9, 8), (8, 13)])
def test_any_size(monkeypatch: pytest.MonkeyPatch, tiles: int, size: tuple[int, int]) -> None:
    monkeypatch.setattr(winograd, "TILES", tiles)
    # Small whole numbers, of which bfloat16 rounds neither the sums nor the products.
    weight = 4 * torch.randint(-1, 2, (6, 3, 3, 3)).float()
    x = torch.randint(-1, 2, (2, 3, *size)).float()
    module, expected = Winograd3x3(weight), F.conv2d(x, weight, padding=1)
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x.bfloat16()).float(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding(dtype: torch.dtype) -> None:
    weight, x = torch.randn(16, 256, 3, 3), torch.randn(1, 256, 20, 21).to(dtype)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct = F.conv2d(x, weight.to(dtype), padding=1)
    got = Winograd3x3(weight)(x)
    assert got.dtype == dtype
    error, least = (((y - exact) ** 2).mean().sqrt() for y in (got, direct))
    assert error < 3 * least
