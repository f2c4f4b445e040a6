"""`predict`, from images in any form to masks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, make
from PIL import Image
from torch.nn import functional as F

from hdmnet import HDMNet, Segmentation, box_mask
from hdmnet.images import load_image, load_mask


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def support() -> tuple[Image.Image, np.ndarray]:
    return picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80)).numpy()


def test_result(model: HDMNet, support: tuple) -> None:
    result = model.predict(picture(), *support)
    assert isinstance(result, Segmentation)
    assert result.probability.shape == result.mask.shape == (70, 90)
    assert result.probability.dtype == torch.float32
    assert result.mask.dtype == torch.bool
    assert 0 <= result.probability.min() <= result.probability.max() <= 1
    assert torch.equal(result.mask, result.probability > 0.5)


def test_is_the_forward_pass(model: HDMNet, support: tuple) -> None:
    """`predict` resizes, normalises, calls the model, resizes back and clamps the two scores."""
    image, mask = support
    query = picture()

    def prepare(x: Image.Image) -> torch.Tensor:
        resized = F.interpolate(load_image(x)[None], (64, 64), mode="bilinear", antialias=True)
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        return (resized - mean) / std

    m = F.interpolate(torch.from_numpy(mask)[None, None].float(), (64, 64), mode="nearest")
    with torch.inference_mode():
        final = model(prepare(query), prepare(image)[None], m).final
    scores = F.interpolate(final, (70, 90), mode="bilinear", align_corners=False)[0].clamp(min=0)
    expected = (scores[1] / scores.sum(0)).nan_to_num(0)
    assert 0.1 < (expected > 0).float().mean() < 1 or (expected > 0).all()
    assert_same(model.predict(query, image, mask).probability, expected)


def test_negative_scores_are_not_foreground(fresh: HDMNet, support: tuple) -> None:
    with torch.no_grad():
        fresh.ensemble.gram_merge.weight.copy_(torch.tensor([-1.0, 0]).view(1, 2, 1, 1))
    result = fresh.predict(picture(), *support)
    assert torch.equal(result.probability, torch.zeros(70, 90))


def test_one_or_several(model: HDMNet, support: tuple) -> None:
    image, mask = support
    one = model.predict(picture(), image, mask)
    several = model.predict([picture(), picture(50, 60, seed=3)], [image, image], [mask, mask])
    assert isinstance(several, list)
    assert [tuple(r.mask.shape) for r in several] == [(70, 90), (60, 50)]
    assert_same(several[0].probability, one.probability)
    assert model.predict([], image, mask) == []


def test_encoded_supports_give_the_same_answer(model: HDMNet, support: tuple) -> None:
    image, mask = support
    supports, masks = [image, picture(64, 48, seed=2)], [mask, np.eye(48, 64) > 0]
    encoded = model.encode_supports(supports, masks)
    assert encoded.shots == 2
    for seed in range(3):
        query = picture(seed=seed)
        cold = model.predict(query, supports, masks)
        assert torch.equal(model.predict(query, encoded).probability, cold.probability)


def test_all_kinds_of_input_agree(model: HDMNet, support: tuple, tmp_path: Path) -> None:
    query, (image, mask) = picture(), support
    query.save(tmp_path / "query.png")
    image.save(tmp_path / "support.png")
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    expected = model.predict(query, image, mask).probability
    chw = torch.from_numpy(np.asarray(query).copy()).permute(2, 0, 1)
    for q, s, m in (
        (tmp_path / "query.png", str(tmp_path / "support.png"), tmp_path / "mask.png"),
        (np.asarray(query), np.asarray(image), mask.astype(bool)),
        (chw, image, torch.from_numpy(mask)),
        (chw / 255, image, Image.fromarray(mask * 255)),
    ):
        assert_same(model.predict(q, s, m).probability, expected)


def test_does_not_change_the_model(fresh: HDMNet, support: tuple) -> None:
    fresh.train()
    fresh.cascade.eval()  # a mode that train() alone would not restore
    modes = [m.training for m in fresh.modules()]
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    expected = make().predict(picture(), *support).probability
    assert torch.equal(fresh.predict(picture(), *support).probability, expected)
    assert [m.training for m in fresh.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(TypeError):
        fresh.predict(3, *support)
    assert [m.training for m in fresh.modules()] == modes
    assert torch.is_grad_enabled()


def test_is_deterministic(model: HDMNet, support: tuple) -> None:
    first, second = (model.predict(picture(), *support).probability for _ in range(2))
    assert torch.equal(first, second)


def test_prints_nothing(model: HDMNet, support: tuple, capsys: pytest.CaptureFixture) -> None:
    model.predict(picture(), *support)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("supports", "masks", "message"),
    [
        ([], [], "got 0 supports and 0 masks"),
        ([picture(), picture()], [np.ones((70, 90), bool)], "got 2 supports and 1 masks"),
        (picture(), np.ones((70, 91), bool), "70"),
        (picture(), None, "masks is missing"),
    ],
)
def test_errors(model: HDMNet, supports: object, masks: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(picture(), supports, masks)


def test_encoded_supports_take_no_masks(model: HDMNet, support: tuple) -> None:
    with pytest.raises(ValueError, match="leave masks out"):
        model.predict(picture(), model.encode_supports(*support), support[1])


class TestSegmentation:
    @pytest.fixture
    def result(self) -> Segmentation:
        probability = torch.zeros(70, 90)
        probability[20:50, 30:60] = 0.9
        probability[:5] = 0.5  # exactly 0.5 is not in the mask
        return Segmentation(probability)

    def test_mask(self, result: Segmentation) -> None:
        assert result.mask.sum() == 30 * 30

    def test_overlay(self, result: Segmentation) -> None:
        query = picture()
        image = result.overlay(query, color=(0, 0, 255), opacity=0.5)
        assert image.size == query.size
        before, after = np.asarray(query, float), np.asarray(image, float)
        mask = result.mask.numpy()
        assert np.array_equal(before[~mask], after[~mask])
        inside = np.zeros_like(mask)
        inside[24:46, 34:56] = True
        expected = (before[inside] + [0, 0, 255]) / 2
        assert np.abs(after[inside] - expected).max() <= 1
        assert np.array_equal(after[20, 40], [0, 0, 255])  # the outline
        assert np.array_equal(np.asarray(query, float), before)

    def test_overlay_of_another_size(self, result: Segmentation) -> None:
        with pytest.raises(ValueError, match=r"\(70, 91\).*\(70, 90\)"):
            result.overlay(picture(91, 70))

    def test_save(self, result: Segmentation, tmp_path: Path) -> None:
        path = tmp_path / "mask.png"
        path.write_bytes(b"old")
        result.save(path)
        assert list(tmp_path.iterdir()) == [path]
        assert np.array_equal(np.asarray(Image.open(path)), result.mask.numpy() * 255)
        assert torch.equal(load_mask(path, (70, 90)).bool(), result.mask)

    def test_save_other_format(self, result: Segmentation, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\.png"):
            result.save(tmp_path / "mask.jpg")
        assert not list(tmp_path.iterdir())

    def test_failed_save_leaves_the_old_file(
        self, result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "mask.png"
        path.write_bytes(b"old")

        def fail(_: Image.Image, fp: Path, **__: object) -> None:
            fp.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            result.save(path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_predict_on_a_model_in_double(support: tuple) -> None:
    result = make().double().predict(picture(), *support)
    assert result.probability.dtype == torch.float32


def test_results_are_ordinary_tensors(model: HDMNet, support: tuple) -> None:
    result = model.predict(picture(), *support)
    result.probability.mul_(0.5)
    assert result.probability.max() <= 0.5


def test_eight_threads_on_one_model(
    fresh: HDMNet, support: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`predict` only reads a model in eval mode, so any number of threads may share it."""
    pictures = [picture(seed=seed) for seed in range(16)]
    encoded = fresh.encode_supports(*support)
    expected = [fresh.predict(image, encoded).probability for image in pictures]
    monkeypatch.setattr(HDMNet, "train", lambda *_: pytest.fail("the mode was switched"))
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda image: fresh.predict(image, encoded).probability, pictures))
    for a, e in zip(got, expected, strict=True):
        assert torch.equal(a, e)


def test_a_model_in_training_mode_is_switched_and_put_back(fresh: HDMNet, support: tuple) -> None:
    """`predict` turns dropout off. Every module gets its own mode back, also after an error."""
    encoded = fresh.encode_supports(*support)
    expected = fresh.predict(picture(), encoded).probability
    fresh.freeze_backbone().train()
    fresh.encoder.eval()
    modes = [module.training for module in fresh.modules()]
    assert torch.equal(fresh.predict(picture(), encoded).probability, expected)
    assert [module.training for module in fresh.modules()] == modes
    with pytest.raises(ValueError, match="on meta"):
        fresh.predict(picture(), encoded.to("meta"))
    assert [module.training for module in fresh.modules()] == modes
