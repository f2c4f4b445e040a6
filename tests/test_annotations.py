"""Boxes, points and scribbles in place of masks."""

import json
import math
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, make
from PIL import Image, ImageFilter
from test_predict import picture

from hdmnet import (
    Box,
    HDMNet,
    Points,
    Scribble,
    Segmentation,
    annotation_from_dict,
    box_mask,
    load_mask,
)
from hdmnet.images import load_image
from hdmnet.preprocess import resize_image, resize_label
from hdmnet.pseudo import MARGIN, Guess
from hdmnet.rating import compare

SIZE = (100, 80)  # height, width
ANNOTATIONS = (
    Box(20, 30.5, 60, 80),
    Points([(40, 50)], negative=[(3, 4.5), (70, 90)]),
    Scribble([[(30, 40), (50, 60), (40, 70)], [(35, 45)]], [[(5, 5), (5, 90)]]),
)
each = pytest.mark.parametrize("annotation", ANNOTATIONS, ids=lambda a: type(a).__name__)


@each
def test_serialises(annotation) -> None:
    assert annotation_from_dict(json.loads(json.dumps(annotation.to_dict()))) == annotation
    assert pickle.loads(pickle.dumps(annotation)) == annotation
    assert len({annotation, pickle.loads(pickle.dumps(annotation))}) == 1


def test_arrays_become_plain_numbers() -> None:
    points = Points(np.array([[40, 50]]), negative=np.array([[3, 4.5]], np.float32))
    assert points == Points([(40, 50)], [(3, 4.5)])
    assert Box(*np.array([1, 2, 3, 4])) == Box(1, 2, 3, 4)
    json.dumps([points.to_dict(), Box(*np.array([1, 2, 3, 4])).to_dict()])
    assert Scribble([np.array([[1, 2], [3, 4]])]) == Scribble([[(1, 2), (3, 4)]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Box(5, 1, 2, 4), ValueError, r"Box\(5, 1, 2, 4\): .*x0 < x1.*x \+ width"),
        (lambda: Box(0, 0, math.inf, 4), ValueError, "four finite numbers"),
        (lambda: Box(0, 0, "3", 4), TypeError, "expected four numbers"),
        (lambda: Points([]), ValueError, "positive is empty: expected something on the object"),
        (lambda: Points((3, 4)), TypeError, r"holds 3: expected a list of \(x, y\)"),
        (lambda: Points([(3, 4, 5)]), TypeError, r"holds \(3, 4, 5\): expected a list of \(x, y\)"),
        (lambda: Points([(3, math.nan)]), ValueError, "expected finite numbers"),
        (lambda: Points("34"), TypeError, "positive is '34'"),
        (lambda: Points([(1, 2)], [("a", 2)]), TypeError, "negative holds"),
        (lambda: Scribble([(3, 4), (5, 6)]), TypeError, "a list of polylines"),
        (lambda: Scribble([]), ValueError, "positive is empty"),
        (lambda: Scribble([[(1, 2)], []]), ValueError, "without points"),
        (lambda: annotation_from_dict({"kind": "star"}), ValueError, "box, points, scribble"),
        (lambda: annotation_from_dict({"kind": []}), ValueError, "box, points, scribble"),
        (lambda: annotation_from_dict({"kind": "box", "x0": 1}), ValueError, "has the fields"),
    ],
)
def test_wrong_values(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_seeds() -> None:
    assert Box(1, 0, 3, 2).seeds((2, 4)).tolist() == [[0, 255, 255, 0]] * 2
    assert Points([(1.9, 0)], [(3, 1)]).seeds((2, 4)).tolist() == [
        [255, 1, 255, 255],
        [255, 255, 255, 0],
    ]
    line = Scribble([[(0, 0), (2, 2)]]).seeds((3, 3))
    assert line.tolist() == [[1, 255, 255], [255, 1, 255], [255, 255, 1]]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Box(80, 0, 90, 5), "outside its image of 100 x 80"),
        (Box(0.1, 0.2, 0.8, 1), r"less than a pixel.* shares by 80 \(width\) and 100 \(height\)"),
        (Points([(90, 50)]), r"Points has the point \(90, 50\), outside.*; are x and y swapped\?$"),
        (Points([(4, 4)], [(-1, 500)]), r"the point \(-1, 500\).*of that image$"),
        (Scribble([[(4, 4), (4, 100)]]), r"Scribble has the point \(4, 100\)"),
        (Points([(9.2, 9.2)], [(9.7, 9.7)]), "Points: negative covers all of positive"),
        (Scribble([[(4, 4), (9, 4)]], [[(2, 4), (12, 4)]]), "Scribble: negative covers all"),
    ],
)
def test_outside_of_the_image(model: HDMNet, annotation, message: str) -> None:
    image = picture(80, 100)
    with pytest.raises(ValueError, match=message):
        model.pseudo_mask(image, annotation)
    with pytest.raises(ValueError, match=f"^support 1: .*{message}"):
        model.encode_supports([image, image], [box_mask((0, 0, 9, 9), SIZE), annotation])


def scene() -> Image.Image:
    """A red disc on a green ground, both with some noise."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (x - 40) ** 2 + (y - 55) ** 2 < 20**2
    pixels = np.where(disc[..., None], (200, 40, 40), (40, 160, 60))
    noise = np.random.default_rng(0).integers(-20, 20, pixels.shape)
    return Image.fromarray((pixels + noise).astype(np.uint8))


@each
def test_a_support_is_its_pseudo_mask_seen_with_a_margin(model: HDMNet, annotation) -> None:
    image, side = scene(), model.image_size
    mask = model.pseudo_mask(image, annotation)
    assert (mask.shape, mask.dtype) == (SIZE, torch.uint8)
    assert mask.unique().tolist() == [0, 1]
    seeds = annotation.seeds(SIZE)
    assert (mask[seeds != 255] == seeds[seeds != 255]).all()

    x = model.backbone.normalise(resize_image(load_image(image), (side, side)))[None]
    label = resize_label(mask, (side, side))
    wide = Image.fromarray((label == 1).numpy()).convert("L")
    wide = wide.filter(ImageFilter.MaxFilter(2 * round(MARGIN * side) + 1))
    possible = resize_label((seeds != 0).byte(), (side, side)) == 1
    seen = (torch.from_numpy(np.array(wide) > 0) & possible) | (label == 1)
    assert (seen.sum() > label.sum()) == (not isinstance(annotation, Box))  # the box is full
    with torch.no_grad():
        expected = model.encode_features(model.backbone(x * seen), label[None, None])
    assert_same(model.encode_supports(image, annotation).prototypes, expected.prototypes)


@each
def test_the_mask_is_the_answer_to_the_first_guess(model: HDMNet, annotation) -> None:
    image, size = scene(), (model.image_size, model.image_size)
    x = model.backbone.normalise(resize_image(load_image(image), size))[None]
    guess = Guess(annotation.seeds(SIZE), model.image_size)
    with torch.no_grad():
        scores = model.scores(x, model.encode(x[None], guess.first[None, None]))
    expected = guess.mask(Segmentation.from_scores(scores, size).probability)
    assert torch.equal(model.pseudo_mask(image, annotation), expected)


def test_mixed_with_masks(model: HDMNet) -> None:
    image = scene()
    given = [box_mask((20, 35, 60, 75), SIZE).numpy(), *ANNOTATIONS]
    first, *others = (model.encode_supports(image, one) for one in given)
    together = model.encode_supports([image] * 4, given)
    assert_same(together.prototypes, first.merge(*others).prototypes)
    masks_by_class = {"a": given[1], "b": given[2:]}
    many = model.predict(picture(), {"a": image, "b": [image, image]}, masks_by_class)
    alone = model.predict(picture(), [image, image], given[2:])
    assert torch.equal(many["b"].probability, alone.probability)


def test_exif_turn(model: HDMNet, tmp_path: Path) -> None:
    """Coordinates are those of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    scene().rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    upright = model.pseudo_mask(scene(), ANNOTATIONS[0])
    assert torch.equal(model.pseudo_mask(tmp_path / "a.png", ANNOTATIONS[0]), upright)


def test_refusals(model: HDMNet) -> None:
    with pytest.raises(TypeError, match=r"mask is a Box: .*; model\.pseudo_mask\("):
        load_mask(ANNOTATIONS[0])
    with pytest.raises(TypeError, match="must be a Box, Points or Scribble"):
        model.pseudo_mask(scene(), (20, 30, 60, 80))
    with pytest.raises(TypeError, match="mask is a Points"):
        model.predict(scene(), [scene()], [ANNOTATIONS[1]], class_ids={"a": 1})


EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTO, TRUTH = EXAMPLES / "data" / "fish" / "support_1.jpg", EXAMPLES / "data/fish/support_1.png"
ON_FISH = {
    "box": (Box(28, 30, 294, 119), 0.55),  # filled, it has 0.52
    "scribble": (Scribble([[(75, 70), (130, 65), (200, 58), (265, 72)]]), 0.7),
    "points": (Points([(100, 68), (170, 60), (240, 60)]), 0.7),
}


def test_finds_the_object() -> None:
    model, truth = HDMNet.from_pretrained("hdmnet-lite0"), load_mask(TRUTH) == 1
    for kind, (annotation, least) in ON_FISH.items():
        mask = model.pseudo_mask(PHOTO, annotation) == 1
        assert (mask & truth).sum() / (mask | truth).sum() > least, kind


@pytest.mark.slow
def test_the_example_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")
    import trees

    make().save_pretrained(tmp_path / "model")
    labels = {f"{i}": trees.boxes_label((90, 120), {(20 + i, 15, 70, 60): 3}) for i in range(3)}
    options = ["--model", tmp_path / "model", "--classes", 3, "--shots", 1, 2, "--episodes", 2, 1]
    arguments = [trees.voc(tmp_path, labels), tmp_path / "masks", *options]
    script = EXAMPLES / "annotations.py"
    monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "1 episodes of 2 shots, 2 supports" in printed
    assert len(re.findall(r"\| (mask|filled box) \| 100\.0 \|", printed)) == 4  # it is a box
    kept = sorted(folder.name for folder in (tmp_path / "masks").iterdir())
    assert kept == ["1 point", "3 points", "box", "scribble"]


def test_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from own_network import PrototypeNet

    network = PrototypeNet().eval()
    mask = network.pseudo_mask(scene(), ANNOTATIONS[1])
    assert mask.unique().tolist() == [0, 1]
    assert network.predict(picture(), scene(), ANNOTATIONS[1]).mask.shape == (70, 90)


def test_a_margin_counts_as_background_in_ratings(model: HDMNet) -> None:
    image = scene()
    masks = [box_mask((20, 35, 60, 75), SIZE), ANNOTATIONS[0], ANNOTATIONS[1]]
    _, labels = model._prepare_supports([image] * 3, masks)
    assert labels.unique().tolist() == [0, 1, 2]
    probability = torch.rand(3, *labels.shape[1:])
    plain = labels[1].where(labels[1] == 1, 0)
    assert_same(compare(probability, labels[1], 1)[0], compare(probability, plain, 1)[0], 0)


class TestGuess:
    def test_stays_in_the_box(self) -> None:
        guess = Guess(Box(20, 30, 60, 80).seeds(SIZE), 50)
        assert torch.equal(guess.first, resize_label(box_mask((20, 30, 60, 80), SIZE), (50, 50)))
        mask = guess.mask(torch.ones(50, 50))
        # Resizing takes at most a pixel of the border.
        assert (mask <= box_mask((20, 30, 60, 80), SIZE)).all()
        assert (mask >= box_mask((21, 31, 59, 79), SIZE)).all()

    def test_starts_around_the_points_and_grows(self) -> None:
        guess = Guess(Points([(40, 50)], [(60, 50)]).seeds(SIZE), 50)
        mask = guess.mask(torch.full((50, 50), 0.4))  # enough for what is small
        assert 50 < guess.first.sum() < 2500
        assert guess.first.mean() < mask.float().mean() < 1
        assert mask[50, 60] == 0
        assert mask[50, 10] == 1
        large = Guess(Scribble([[(5, 5), (75, 95)]]).seeds(SIZE), 50)
        assert large.mask(torch.full((50, 50), 0.4))[90, 10] == 0

    def test_keeps_the_points_when_the_model_finds_nothing(self) -> None:
        guess = Guess(Points([(40, 50)]).seeds(SIZE), 50)
        mask = guess.mask(torch.zeros(50, 50))
        assert mask[50, 40] == 1
        assert abs(mask.float().mean() - guess.first.mean()) < 0.01

    @pytest.mark.parametrize("box", [(3.2, 3.2, 3.4, 3.4), (0, 0, 80, 100), (-5, -5, 1, 1)])
    def test_is_never_empty(self, box: tuple) -> None:
        guess = Guess(Box(*box).seeds(SIZE), 20)
        assert torch.equal(guess.mask(torch.zeros(20, 20)), box_mask(box, SIZE))
