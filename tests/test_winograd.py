"""The Winograd convolution against the direct one."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same

from hdmnet import winograd
from hdmnet.winograd import Winograd3x3


@pytest.mark.parametrize("tiles", [1, 5, 300])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (9, 8), (8, 13)])
def test_any_size(monkeypatch: pytest.MonkeyPatch, tiles: int, size: tuple[int, int]) -> None:
    monkeypatch.setattr(winograd, "TILES", tiles)
    weight, x = torch.randn(6, 10, 3, 3), torch.randn(2, 10, *size)
    got = Winograd3x3(weight, torch.float32)(x)
    assert_same(got, F.conv2d(x, weight, padding=1))


def test_rounding_of_bfloat16() -> None:
    weight, x = torch.randn(16, 256, 3, 3), torch.randn(1, 256, 20, 21).bfloat16()
    exact = F.conv2d(x.float(), weight, padding=1)
    direct = F.conv2d(x, weight.bfloat16(), padding=1)
    got = Winograd3x3(weight, torch.bfloat16)(x)
    assert got.dtype == torch.bfloat16
    error, least = (((y - exact) ** 2).mean().sqrt() for y in (got, direct))
    assert error < 3 * least
