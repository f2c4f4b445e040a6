"""Base and novel classes in one label map."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make
from PIL import Image
from test_predict import picture
from torch.nn import functional as F

from hdmnet import (
    FewShotModel,
    GeneralizedSegmentation,
    HDMNet,
    MulticlassSegmentation,
    box_mask,
)
from hdmnet.images import load_image

SUPPORT = picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80))


@pytest.fixture(scope="module")
def model() -> HDMNet:
    """A model whose novel class and two of three base classes appear in the pictures below."""
    return make()


def direct(model: HDMNet, query: Image.Image, threshold: float) -> torch.Tensor:
    """BAM's rule, pixel by pixel, from the outputs of `forward`."""

    def prepare(x: Image.Image) -> torch.Tensor:
        resized = F.interpolate(load_image(x)[None], (64, 64), mode="bilinear", antialias=True)
        return model.backbone.normalise(resized)

    image, mask = SUPPORT
    mask = F.interpolate(mask[None, None].float(), (64, 64), mode="nearest")
    with torch.inference_mode():
        out = model(prepare(query), prepare(image)[None], mask)
    size = (query.height, query.width)
    final, base = (F.interpolate(x, size, mode="bilinear")[0] for x in (out.final, out.base))
    b, f = final.clamp(min=0)
    labels = torch.zeros(size, dtype=torch.long)
    for y in range(size[0]):
        for x in range(size[1]):
            novel = f[y, x] / (b[y, x] + f[y, x]) > threshold
            labels[y, x] = 4 if novel else int(base[:, y, x].argmax())
    return labels


def test_is_the_direct_formulation(model: HDMNet) -> None:
    query = picture(45, 35, seed=3)
    result = model.predict(query, *SUPPORT, generalized=True)
    assert isinstance(result, GeneralizedSegmentation)
    plain = model.predict(query, *SUPPORT).probability
    threshold = plain.median().item()
    expected = direct(model, query, threshold)
    assert len(expected.unique()) >= 3  # the novel class and at least two others
    assert torch.equal(result.labels_above(threshold), expected)
    assert torch.equal(result.labels, direct(model, query, 0.5))
    assert torch.equal(result.novel["novel"].probability, plain)
    assert result.labels.dtype == torch.int64


def test_several_novel_classes(model: HDMNet) -> None:
    other = picture(60, 60, seed=7), np.eye(60) > 0
    sets = {"cat": model.encode_supports(*SUPPORT), "dog": model.encode_supports(*other)}
    sets["cow"] = sets["cat"].merge(sets["dog"])
    queries = [picture(45, 35, seed=3), picture(50, 40, seed=4)]
    for query, result in zip(queries, model.predict(queries, sets, generalized=True), strict=True):
        many = model.predict(query, sets)
        assert result.names == ("base 1", "base 2", "base 3", "cat", "dog", "cow")
        assert torch.equal(result.novel.probability, many.probability)
        base = model.predict(query, sets["cat"], generalized=True).base
        assert torch.equal(result.base, base)
        expected = torch.where(many.labels > 0, many.labels + 3, base)
        assert torch.equal(result.labels, expected)


def test_in_a_batch(model: HDMNet) -> None:
    queries = [picture(seed=seed) for seed in range(3)]
    alone = [model.predict(query, *SUPPORT, generalized=True).labels for query in queries]
    encoded = model.encode_supports(*SUPPORT)
    batch = model.predict_iter(queries, encoded, batch_size=2, generalized=True)
    for found, expected in zip(batch, alone, strict=True):
        assert (found.labels == expected).float().mean() > 0.999


def answer() -> GeneralizedSegmentation:
    novel = torch.tensor([[[0.9, 0.2, 0.6]], [[0.1, 0.3, 0.8]]])
    base = torch.tensor([[1, 2, 0]])
    return GeneralizedSegmentation(MulticlassSegmentation(("cat", "dog"), novel), base, 2)


def test_labels_above() -> None:
    assert answer().labels.tolist() == [[3, 2, 4]]
    assert answer().labels_above(0.85).tolist() == [[3, 2, 0]]
    assert answer().labels_above(0.25).tolist() == [[3, 4, 4]]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            answer().labels_above(wrong)


def test_overlay_and_save(tmp_path: Path) -> None:
    answer().save(tmp_path / "labels.png")
    saved = Image.open(tmp_path / "labels.png")
    assert np.asarray(saved).tolist() == [[3, 2, 4]]
    assert answer().overlay(Image.new("RGB", (3, 1))).size == (3, 1)


@pytest.mark.parametrize("given", [SUPPORT, ({"cat": SUPPORT[0]}, {"cat": SUPPORT[1]})])
def test_needs_a_base_learner(given: tuple) -> None:
    model: FewShotModel = make(base_classes=0)
    with pytest.raises(ValueError, match="base_classes=0"):
        model.predict(picture(), *given, generalized=True)
