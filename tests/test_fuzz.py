"""Random damage: each reader of files reads a damaged file, or raises one clear error."""

import io
import json
from pathlib import Path

import pytest
import torch
from hostile import MODEL, encoded, photograph, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from hdmnet import HDMNet, SupportSet
from hdmnet.checkpoint import read_config, read_tensors
from hdmnet.convert import read_checkpoint
from hdmnet.images import load_image, load_mask

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")


@pytest.fixture(params=[100, pytest.param(1000, marks=pytest.mark.slow)])
def fuzz(request: pytest.FixtureRequest) -> settings:
    """The number of examples, and the same examples in every run."""
    return settings(max_examples=request.param, deadline=None, derandomize=True)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Change some bytes of a file. Perhaps also cut it, double it or insert bytes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        # Half of the changes are near the start: headers are short, but matter most.
        end = draw(st.sampled_from([min(200, len(data) - 1), len(data) - 1]))
        data[draw(st.integers(0, end))] = draw(st.integers(0, 255))
    match draw(st.integers(0, 5)):
        case 0:
            data = data[: draw(st.integers(0, len(data)))]
        case 1:
            data = data + data
        case 2:
            place = draw(st.integers(0, len(data)))
            data[place:place] = draw(st.binary(max_size=64))
    return bytes(data)


@pytest.mark.parametrize("format", FORMATS)
def test_images(fuzz: settings, tmp_path: Path, format: str) -> None:
    path = tmp_path / "image"

    @fuzz
    @given(damaged(encoded(format, (20, 30))))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            image = load_image(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert image.shape[0] == 3
            assert ((image >= 0) & (image <= 1)).all()

    read()


def test_masks(fuzz: settings, tmp_path: Path) -> None:
    path, buffer = tmp_path / "mask", io.BytesIO()
    Image.fromarray(pixels(1, 255)).save(buffer, "PNG")

    @fuzz
    @given(damaged(buffer.getvalue()))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            assert load_mask(path, (50, 60)).unique().tolist() in ([0], [0, 1], [0, 1, 255])
        except ValueError as error:
            assert str(path) in str(error)

    read()


def test_weights(fuzz: settings, tmp_path: Path) -> None:
    path, expected = tmp_path / "weights", {"a": torch.rand(2, 3), "b": torch.rand(4)}

    @fuzz
    @given(damaged(save(expected, {"format": "pt"})))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            tensors = read_tensors(path, expected)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert {name: x.shape for name, x in tensors.items()} == {
                name: x.shape for name, x in expected.items()
            }

    read()


def test_support_sets(fuzz: settings, tmp_path: Path) -> None:
    path = tmp_path / "set"
    MODEL.encode_supports(photograph(), pixels(1, 1, 1)).save(path)

    @fuzz
    @given(damaged(path.read_bytes()))
    def read(content: bytes) -> None:
        (tmp_path / "damaged").write_bytes(content)
        try:
            supports = SupportSet.load(tmp_path / "damaged")
            MODEL.predict(photograph(), supports)
        except ValueError as error:
            assert str(error)

    read()


def test_checkpoints(fuzz: settings, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    torch.save({"state_dict": {"a": torch.rand(2, 3)}, "epoch": 3}, path)

    @fuzz
    @given(damaged(path.read_bytes()))
    def read(content: bytes) -> None:
        (tmp_path / "damaged").write_bytes(content)
        try:
            read_checkpoint(tmp_path / "damaged")
        except ValueError as error:
            assert str(tmp_path) in str(error)

    read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 40) | st.integers() | st.floats()


def test_configurations(fuzz: settings, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(MODEL.config, JSON | NUMBERS))

    @fuzz
    @given(JSON | known)
    def read(content: object) -> None:
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            config = read_config(path, MODEL.config)
            with torch.device("meta"):
                model = HDMNet(**{"backbone": "mobilenetv3_small_050"} | config)
        except (TypeError, ValueError) as error:
            assert str(error)
        else:
            assert model.config["dim"] % 2 == 0

    read()
