"""Fixtures and helpers that several test files use."""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hdmnet import HDMNet, HDMNetOutput, list_pretrained

REFERENCE = Path(__file__).parent / "reference"


def pytest_configure() -> None:
    """Share the cores among the processes of pytest-xdist, and what their tests start."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, torch.get_num_threads() // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(scope="session")
def reference() -> Iterator[Path]:
    """Folder of the reference cases. Tests can import its module `synthetic`."""
    sys.path.insert(0, str(REFERENCE))
    yield REFERENCE
    sys.path.remove(str(REFERENCE))


def fill(model: nn.Module) -> None:
    """Fill each tensor from its name, so that values do not depend on the version of torch."""
    for key, value in model.state_dict().items():
        if value.dtype != torch.long:
            value.copy_(values(key, value.shape))


@lru_cache(maxsize=1024)  # hundreds of tests make the same small model
def values(key: str, shape: torch.Size) -> Tensor:
    """Draw the values of the tensor of this name."""
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        data = np.exp(0.2 * noise)
    elif len(shape) > 1:
        data = noise / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        data = 1 + 0.1 * noise
    else:
        data = 0.1 * noise
    return torch.from_numpy(np.asarray(data, dtype=np.float32))


def make(**options: object) -> HDMNet:
    """Make a small model in eval mode, with the weights of `fill`."""
    options = {"backbone": "resnet18", "base_classes": 3, "image_size": 64} | options
    model = HDMNet(**options)
    fill(model)
    return model.eval()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> HDMNet:
    """A small one-shot model, shared by all tests: do not change it."""
    return make()


@pytest.fixture(scope="session")
def small_lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundled model, for images of 129 pixels: a seventh of the work."""
    folder = tmp_path_factory.mktemp("models") / "hdmnet-lite0-129"
    shutil.copytree(list_pretrained()[0].path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": 129}))
    return folder


@pytest.fixture
def small_bundled(small_lite0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let code that names the bundled model get it for images of 129 pixels."""
    load = HDMNet.from_pretrained

    def load_small(name: str | Path, **options: Any) -> HDMNet:
        return load(small_lite0 if name == "hdmnet-lite0" else name, **options)

    monkeypatch.setattr(HDMNet, "from_pretrained", load_small)


@pytest.fixture
def fresh() -> HDMNet:
    """A small one-shot model that a test may change."""
    return make()


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw smooth random images, and masks of one rectangle with an ignored border.

    Returns:
        Query (B, 3, H, W), supports (B, K, 3, H, W) and masks (B, K, H, W).
    """
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
    """Check that max |actual - expected| ≤ tolerance · max |expected|."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-12)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= tolerance, f"differs by {error:.1e} of the largest magnitude"


def tensors(output: HDMNetOutput) -> list[Tensor]:
    """List all tensors of an output."""
    flat = [output.final, output.meta, output.prior, *output.correlations]
    return flat if output.base is None else [*flat, output.base]


def assert_same_output(
    actual: HDMNetOutput, expected: HDMNetOutput, tolerance: float = 1e-5
) -> None:
    """Call `assert_same` for every tensor of two outputs."""
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert_same(a, e, tolerance)
