"""Files that the library writes: whole, in a folder that exists, readable like their neighbours."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE

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


def permissions(folder: Path) -> dict[str, int]:
    return {path.name: S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def usual(request: pytest.FixtureRequest) -> Iterator[int]:
    """The permissions of a new file under each umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
class TestPermissions:
    def test_of_a_new_file(self, save: tuple[str, Callable], usual: int, tmp_path: Path) -> None:
        name, write = save
        write(tmp_path / name)
        assert permissions(tmp_path) == {name: usual}

    def test_of_a_new_model(self, small: HDMNet, usual: int, tmp_path: Path) -> None:
        small.save_pretrained(tmp_path / "model")
        files = ("README.md", "config.json", "model.safetensors")
        assert permissions(tmp_path / "model") == dict.fromkeys(files, usual)

    def test_a_replaced_file_keeps_its_own(
        self, small: HDMNet, save: tuple[str, Callable], usual: int, tmp_path: Path
    ) -> None:
        name, write = save
        small.save_pretrained(tmp_path)
        for file in (name, "model.safetensors"):
            (tmp_path / file).touch()
            (tmp_path / file).chmod(0o640)
        write(tmp_path / name)
        small.save_pretrained(tmp_path)
        expected = {name: 0o640, "model.safetensors": 0o640}
        assert permissions(tmp_path) == {"README.md": usual, "config.json": usual, **expected}
