"""`Calibration`: the formula, the arguments, and every way to an answer."""

import math
from pathlib import Path

import pytest
import torch
from conftest import make
from test_predict import picture

from hdmnet import HDMNet, box_mask
from hdmnet.nn.calibration import Calibration
from hdmnet.nn.presence import object_probability

FITTED = {"temperature": 1.7, "threshold": 0.3}
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def plain(scores: torch.Tensor, temperature: float, threshold: float) -> torch.Tensor:
    """The formula with logits, in double precision."""
    b, f = scores.double().unbind(dim=1)
    logit = (f / b).log() - torch.tensor(threshold).double().logit()
    p = (logit / temperature).sigmoid()
    return torch.stack([1 - p, p], dim=1).float()


def test_formula() -> None:
    scores = torch.rand(3, 2, 5, 7) + 1e-3
    expected = plain(scores, **FITTED)
    torch.testing.assert_close(Calibration(**FITTED)(scores), expected, **TOLERANCE)


def test_the_threshold_grows_with_the_supports() -> None:
    scores = torch.rand(1, 2, 40, 40) + 1e-3
    growth = 0.6
    for shots in (1, 2, 5, 30):
        logit = torch.tensor(FITTED["threshold"]).double().logit() + growth * math.log(shots)
        expected = plain(scores, FITTED["temperature"], logit.sigmoid().item())
        found = Calibration(**FITTED, growth=growth)(scores, shots)
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_threshold_becomes_one_half() -> None:
    scores = torch.rand(1, 2, 40, 40)
    before = object_probability(scores)
    after = object_probability(Calibration(3.0, 0.2)(scores))
    torch.testing.assert_close(after > 0.5, before > 0.2)


def test_scores_at_and_below_zero() -> None:
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.2, 0.7], [0.0, 0.0]])[..., None, None]
    p = Calibration(**FITTED)(scores)[:, 1].flatten()
    assert p.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.5])
def test_low_temperatures_do_not_underflow(temperature: float) -> None:
    scores = torch.tensor([[0.4, 0.6], [0.004, 0.006]])[..., None, None]
    p = Calibration(temperature, 0.5)(scores)
    odds = torch.tensor(1.5, dtype=torch.float64) ** (1 / temperature)
    torch.testing.assert_close(p[:, 1].flatten().double(), (odds / (1 + odds)).expand(2))
    torch.testing.assert_close(p.sum(dim=1).flatten(), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """1e-12 is 0 in float16, and bfloat16 has three digits."""
    scores = torch.tensor([[0, 0], [2e-5, 6e-5], [1, 0.01], [0.3, 0.4]], dtype=dtype)
    scores = scores[..., None, None]
    for found, exact in (
        (object_probability(scores), object_probability(scores.double())),
        (Calibration(**FITTED)(scores), Calibration(**FITTED)(scores.double())),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, **TOLERANCE)


def test_without_arguments_nothing_changes() -> None:
    scores = torch.rand(1, 2, 4, 4)
    assert Calibration.from_config(None)(scores) is scores


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([1.0, 0.5], TypeError, "a dict of temperature and threshold"),
        ({"temperature": 1.0}, ValueError, "has the keys"),
        ({"temperature": 1.0, "threshold": 0.5, "shots": 1}, ValueError, "if you like, growth"),
        ({"temperature": 1.0, "threshold": 0.5, "growth": "1"}, TypeError, "a number"),
        ({"temperature": 1.0, "threshold": 0.5, "growth": float("inf")}, ValueError, "finite"),
        ({"temperature": "1", "threshold": 0.5}, TypeError, "a number"),
        ({"temperature": 0, "threshold": 0.5}, ValueError, "expected above 0"),
        ({"temperature": float("inf"), "threshold": 0.5}, ValueError, "expected above 0"),
        ({"temperature": 1.0, "threshold": 1.0}, ValueError, "between 0 and 1"),
        ({"temperature": 1.0, "threshold": float("nan")}, ValueError, "between 0 and 1"),
    ],
)
def test_refused(config: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(calibration=config)


@pytest.fixture(scope="module")
def models() -> tuple[HDMNet, HDMNet]:
    return make(base_classes=0), make(base_classes=0, calibration=FITTED)


class TestModel:
    def test_scores_are_calibrated_and_training_is_not(self, models: tuple[HDMNet, HDMNet]) -> None:
        before, after = models
        query, supports = torch.rand(1, 3, 64, 64), torch.rand(1, 2, 3, 64, 64)
        masks = torch.zeros(1, 2, 64, 64)
        masks[..., 10:40, 20:50] = 1
        with torch.no_grad():
            final = before(query, supports, masks).final
            torch.testing.assert_close(after(query, supports, masks).final, final)
            scores = after.scores(query, after.encode(supports, masks))
        torch.testing.assert_close(scores, plain(final, **FITTED), **TOLERANCE)

    def test_predict(self, models: tuple[HDMNet, HDMNet]) -> None:
        before, after = models
        query, support, mask = (
            picture(64, 64),
            picture(64, 64, seed=1),
            box_mask((9, 9, 40, 50), (64, 64)),
        )
        p = before.predict(query, support, mask).probability
        odds = (p.double().logit() - torch.tensor(FITTED["threshold"]).logit()) / 1.7
        found = after.predict(query, support, mask).probability
        torch.testing.assert_close(found, odds.sigmoid().float(), rtol=0, atol=1e-5)

    def test_more_supports(self, models: tuple[HDMNet, HDMNet]) -> None:
        _, after = models
        growing = make(base_classes=0, calibration=FITTED | {"growth": 0.6})
        pair = picture(64, 64, seed=1), box_mask((9, 9, 40, 50), (64, 64))
        for count in (1, 3):
            supports = [[x] * count for x in pair]
            p, found = (
                model.predict(picture(64, 64), *supports).probability.double().logit()
                for model in (after, growing)
            )
            # Both are resized to the size of the picture, which here is the network's.
            torch.testing.assert_close(
                found, p - 0.6 * math.log(count) / FITTED["temperature"], rtol=0, atol=1e-4
            )

    def test_saved_and_fused(self, models: tuple[HDMNet, HDMNet], tmp_path: Path) -> None:
        _, after = models
        after.save_pretrained(tmp_path)
        loaded = HDMNet.from_pretrained(tmp_path)
        assert loaded.config["calibration"] == FITTED
        assert loaded.fused().calibration.threshold == FITTED["threshold"]

    def test_encoded_supports_stay_valid(self, models: tuple[HDMNet, HDMNet]) -> None:
        before, after = models
        encoded = before.encode_supports(picture(64, 64), box_mask((9, 9, 40, 50), (64, 64)))
        assert after.predict(picture(64, 64, seed=2), encoded).probability.shape == (64, 64)
