"""The bundled weights on the example photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet import HDMNet

DATA = Path(__file__).parents[1] / "examples" / "data"
CLASSES = sorted(path.name for path in DATA.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def lite0() -> HDMNet:
    return HDMNet.from_pretrained("hdmnet-lite0")


@pytest.mark.parametrize("name", CLASSES)
def test_finds_the_support_in_its_own_photograph(lite0: HDMNet, name: str) -> None:
    image, mask = DATA / name / "support_1.jpg", DATA / name / "support_1.png"
    predicted = lite0.predict(image, image, mask).mask.numpy()
    truth = np.asarray(Image.open(mask)) > 0
    assert (predicted & truth).sum() / (predicted | truth).sum() > 0.6


@pytest.mark.parametrize(
    ("query", "inside", "outside"),
    [  # (x, y) as fractions of width and height: points on the object, and outside of it
        ("fish/query_1", [(0.2, 0.4), (0.7, 0.6)], [(0.1, 0.1), (0.9, 0.2), (0.5, 0.95)]),
        ("fish/query_2", [(0.6, 0.5), (0.85, 0.75)], [(0.9, 0.1), (0.1, 0.9)]),
        ("rocket/query_1", [(0.47, 0.5)], [(0.1, 0.5), (0.9, 0.2), (0.7, 0.9)]),
        ("feline/query_1", [(0.45, 0.6)], [(0.05, 0.1), (0.95, 0.2)]),
    ],
)
def test_finds_the_class_in_another_photograph(
    lite0: HDMNet,
    query: str,
    inside: list[tuple[float, float]],
    outside: list[tuple[float, float]],
) -> None:
    folder = (DATA / query).parent
    mask = lite0.predict(
        DATA / f"{query}.jpg", folder / "support_1.jpg", folder / "support_1.png"
    ).mask
    height, width = mask.shape
    assert all(mask[int(y * height), int(x * width)] for x, y in inside)
    assert not any(mask[int(y * height), int(x * width)] for x, y in outside)


def test_an_encoded_set_gives_the_same_answer(lite0: HDMNet) -> None:
    folder = DATA / "person"
    supports = sorted(folder.glob("support_*.jpg"))
    masks = [path.with_suffix(".png") for path in supports]
    encoded = lite0.encode_supports(supports, masks)
    assert encoded.shots == 5
    query = folder / "query_1.jpg"
    assert torch.equal(
        lite0.predict(query, encoded).mask, lite0.predict(query, supports, masks).mask
    )
