"""What several test files share."""

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hdmnet import HDMNet, HDMNetOutput

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def reference() -> Iterator[Path]:
    """Folder of the reference cases, with its module `synthetic` on the path."""
    sys.path.insert(0, str(REFERENCE))
    yield REFERENCE
    sys.path.remove(str(REFERENCE))


def fill(model: nn.Module) -> None:
    """Set every tensor from its own name: the same on any version of torch."""
    for key, value in model.state_dict().items():
        if value.dtype == torch.long:
            continue
        rng = np.random.RandomState(zlib.crc32(key.encode()))
        noise = rng.standard_normal(value.shape)
        if key.endswith("running_var"):
            data = np.exp(0.2 * noise)
        elif value.ndim > 1:
            data = noise / np.sqrt(np.prod(value.shape[1:]))
        elif key.endswith("weight"):
            data = 1 + 0.1 * noise
        else:
            data = 0.1 * noise
        value.copy_(torch.from_numpy(data))


def make(**options: object) -> HDMNet:
    """A small model in eval mode, with weights that depend on their names only."""
    options = {"backbone": "resnet18", "base_classes": 3, "image_size": 64} | options
    model = HDMNet(**options)
    fill(model)
    return model.eval()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> HDMNet:
    """A small one-shot model; tests leave it as it is."""
    return make()


@pytest.fixture
def fresh() -> HDMNet:
    """A small one-shot model that a test may change."""
    return make()


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth random images, and masks of one rectangle with an ignored border each."""
    generator = torch.Generator().manual_seed(seed)

    def images(*shape: int) -> Tensor:
        coarse = torch.randn(*shape, 3, 6, 6, generator=generator).flatten(0, -4)
        fine = nn.functional.interpolate(coarse, size, mode="bilinear")
        return fine.unflatten(0, shape)

    masks = torch.zeros(batch, shots, *size)
    for b in range(batch):
        for k in range(shots):
            y, x = torch.randint(0, min(size) // 2, (2,), generator=generator).tolist()
            h, w = torch.randint(min(size) // 4, min(size) // 2, (2,), generator=generator).tolist()
            masks[b, k, max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2] = 255
            masks[b, k, y : y + h, x : x + w] = 1
    return images(batch), images(batch, shots), masks


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest magnitude."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-12)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= tolerance, f"differs by {error:.1e} of the largest magnitude"


def tensors(output: HDMNetOutput) -> list[Tensor]:
    """All tensors of an output."""
    flat = [output.final, output.meta, output.prior, *output.correlations]
    return flat if output.base is None else [*flat, output.base]


def assert_same_output(
    actual: HDMNetOutput, expected: HDMNetOutput, tolerance: float = 1e-5
) -> None:
    """`assert_same` of every tensor."""
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert_same(a, e, tolerance)
