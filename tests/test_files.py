"""Files that the library writes: whole, in a folder that exists, readable like their neighbours."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make
from PIL import Image

from hdmnet import HDMNet, Segmentation, SupportSet

SMALL = {"backbone": "mobilenetv3_small_050", "base_classes": 0, "dim": 16, "heads": (1,)}


@pytest.fixture(scope="module")
def small() -> HDMNet:
    return make(**SMALL)


@pytest.fixture(scope="module")
def supports(small: HDMNet) -> SupportSet:
    return small.encode_supports(Image.new("RGB", (60, 50)), Image.new("L", (60, 50), 1))


@pytest.fixture(params=["cat.safetensors", "mask.png"])
def save(request: pytest.FixtureRequest, supports: SupportSet) -> tuple[str, Callable]:
    """A name, and a function that writes a file of this name."""
    answer = Segmentation(torch.rand(50, 60))
    return request.param, supports.save if request.param.startswith("cat") else answer.save


def test_a_missing_folder_is_named(save: tuple[str, Callable], tmp_path: Path) -> None:
    name, write = save
    (tmp_path / "file").write_text("mine")
    for folder in ("none", "file"):
        with pytest.raises(FileNotFoundError) as caught:
            write(tmp_path / folder / name)
        path = tmp_path / folder
        assert str(caught.value) == f"{path / name} cannot be written: there is no folder {path}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
