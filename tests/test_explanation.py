"""`result.explain()`: the maps behind an answer, as arrays and drawn."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, make
from PIL import Image
from test_predict import picture
from torch.nn import functional as F

from hdmnet import HDMNet, MulticlassSegmentation, Segmentation, box_mask
from hdmnet._drawing import heat

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def support() -> tuple[Image.Image, np.ndarray]:
    return picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80)).numpy()


@pytest.mark.parametrize(("base_classes", "names"), [(3, ("f5", "f4")), (0, ("f3", "f4"))])
def test_maps_are_those_of_the_network(
    support: tuple, base_classes: int, names: tuple[str, str]
) -> None:
    model, query = make(base_classes=base_classes), picture(90, 70)
    found = model.predict(query, *support).explain()
    encoded = model.encode_supports(*support)
    with torch.inference_mode():
        image = model.backbone.normalise(
            F.interpolate(
                torch.from_numpy(np.asarray(query) / 255).permute(2, 0, 1)[None].float(),
                (64, 64),
                mode="bilinear",
                antialias=True,
            )
        )
        out = model.match(image, encoded)

    def resized(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, (70, 90), mode="bilinear", align_corners=True)[0]

    assert len(found.correlations) == 3
    for level, expected in zip(found.correlations, out.correlations, strict=True):
        assert_same(level, resized(expected[None])[0])
    assert found.prior_names == names
    assert_same(found.priors, resized(out.prior))
    assert all(x.dtype == torch.float32 for x in (*found.correlations, found.priors))


def test_each_class_has_its_own(model: HDMNet, support: tuple) -> None:
    other = picture(60, 60, seed=7), np.eye(60) > 0
    sets = {"cat": model.encode_supports(*support), "dog": model.encode_supports(*other)}
    sets["cow"] = sets["dog"].merge(sets["cat"])  # in another group: it has two shots
    many = model.predict(picture(), sets)
    for name, encoded in sets.items():
        alone = model.predict(picture(), encoded).explain()
        assert_same(many[name].explain().priors, alone.priors)
        assert_same(many[name].explain().correlations[0], alone.correlations[0])
    assert not torch.equal(many["cat"].explain().priors, many["dog"].explain().priors)


def test_each_query_of_a_batch_has_its_own(model: HDMNet, support: tuple) -> None:
    queries = [picture(seed=seed) for seed in range(3)]
    for query, answer in zip(queries, model.predict(queries, *support, batch_size=2), strict=True):
        alone = model.predict(query, *support)
        assert_same(answer.explain().priors, alone.explain().priors)
        drawn = (np.asarray(x.explain().picture(), float) for x in (answer, alone))
        assert np.abs(np.subtract(*drawn)).mean() < 0.1  # a batch rounds in another order


def test_answers_can_still_be_copied_and_pickled(model: HDMNet, support: tuple) -> None:
    result = model.predict(picture(), *support)
    for same in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(same.explain().priors, result.explain().priors)


@pytest.mark.parametrize(
    "result",
    [
        Segmentation(torch.zeros(4, 4)),
        MulticlassSegmentation(("cat",), torch.zeros(1, 4, 4))["cat"],
    ],
)
def test_without_maps(result: Segmentation) -> None:
    with pytest.raises(ValueError, match="nothing to explain"):
        result.explain()


def test_a_network_without_maps(support: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_network import PrototypeNet

    try:
        result = PrototypeNet("resnet18", image_size=64).eval().predict(picture(), *support)
    finally:
        sys.modules.pop("own_network")
    with pytest.raises(ValueError, match="match_sets"):
        result.explain()


@pytest.mark.parametrize("size", [(90, 70), (30, 300)])
def test_picture_shows_query_and_maps(model: HDMNet, support: tuple, size: tuple[int, int]) -> None:
    query = Image.new("RGB", size, (60, 60, 60))
    query.paste((200, 60, 60), (0, 0, size[0] // 2, size[1]))
    result = model.predict(query, *support)
    drawn = result.explain().picture()
    panel = 320 * size[0] // max(size)
    assert drawn.mode == "RGB"
    assert drawn.width == 3 * (max(panel, 200) + 12) + 12
    row = np.asarray(drawn)[12 + 22 + 100]  # through the panels of the first row
    assert np.array_equal(row[0], [255, 255, 255])
    shown = (row[12 + panel // 4], row[12 + 3 * panel // 4])
    for color, of_query in zip(shown, ((200, 60, 60), (60, 60, 60)), strict=True):
        tinted = [(a + b) / 2 for a, b in zip(of_query, (255, 80, 0), strict=True)]
        assert any(np.abs(color - np.array(c)).max() <= 3 for c in (of_query, tinted))


def test_numbers_are_legible_below_a_narrow_query(model: HDMNet, support: tuple) -> None:
    drawn = model.predict(Image.new("RGB", (20, 300)), *support).explain().picture()
    panel = drawn.crop((12 + 212, 12, 12 + 212 + 200, drawn.height // 2))  # the first prior
    below = np.asarray(panel.convert("L"))[-30:]
    dark = np.flatnonzero((below < 128).any(axis=0))
    assert dark[0] < 30
    assert dark[-1] > 170  # the higher number stands at the right end of the panel


def test_heat_grows_from_black_to_pale() -> None:
    colors = heat(torch.linspace(-3, 5, 100)[None])[:, 0]
    brightness = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None] * colors).sum(0)
    assert (brightness.diff() > 0).all()
    assert brightness[0] < 0.01
    assert brightness[-1] > 0.9
    assert heat(torch.ones(2, 3)).isfinite().all()  # a constant map has no range
