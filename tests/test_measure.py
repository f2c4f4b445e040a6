"""The examples that fit and measure, on a small tree in the format of VOC."""

import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from conftest import make

from hdmnet import HDMNet

pytest.importorskip("tqdm", reason="needs hdmnet[eval]")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images: buses, cars and cats by turns."""
    make().save_pretrained(tmp_path / "model")
    labels = {
        f"2008_{i:06}": trees.boxes_label((70, 80), {(5, 5, 65, 65): 6 + i % 3}) for i in range(12)
    }
    return trees.voc(tmp_path, labels) / "VOCdevkit" / "VOC2012"


def test_fit_presence(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ["pascal", root, "--model", tmp_path / "model", "--out", tmp_path / "fitted"]
    arguments += ["--fit", "bus,car", "--test", "cat", "--shots", 2, "--episodes", 3]
    script = runpy.run_path(str(EXAMPLES / "fit_presence.py"))
    monkeypatch.setattr("sys.argv", ["fit_presence.py", *map(str, arguments)])
    caplog.set_level(logging.INFO)
    script["main"]()
    fitted = HDMNet.from_pretrained(tmp_path / "fitted")
    assert len(fitted.presence.center) == fitted.backbone.channels[2]
    assert (fitted.presence.scale, fitted.presence.bias) != (10.0, -5.0)
    text = caplog.text
    assert "1 shots, 3 queries with the class and 3 without: AUROC" in text
    assert "2 shots, 3 queries" in text
    assert text.count("| 0.3 |") >= 2


def test_logistic_regression() -> None:
    script = runpy.run_path(str(EXAMPLES / "fit_presence.py"))
    x = torch.linspace(-3, 3, 4001)
    y = (torch.rand(4001) < (2 * x - 1).sigmoid()).float()
    assert script["logistic_regression"](x, y) == pytest.approx((2, -1), abs=0.2)


def test_report() -> None:
    """AUROC of 3 pairs of which 2 are in order; a threshold empties what is below it."""
    script = runpy.run_path(str(EXAMPLES / "fit_presence.py"))
    full = torch.full((4, 4), 0.9)

    def answered(shown: bool, presence: float) -> object:
        target = torch.zeros(4, 4)
        target[:2], target[0, 0] = float(shown), 255
        doubt = torch.full((2, 2), -20.0 if presence < 0.5 else 0.0)
        answer = script["Segmentation"](full, presence, None, doubt)
        return script["Answered"](1, shown, answer, target)

    results = [answered(True, 0.9), answered(False, 0.2), answered(False, 0.95)]
    presence = {"scale": 1.0, "bias": 0.0, "center": [], "threshold": 0.93}
    text = script["report"](make(presence=presence), results, 1)
    assert "AUROC 0.500" in text
    assert "| 0.5 | 0.467 | 1.00 | 0.50 | 0.500 |" in text  # 7 of 15 pixels
    assert "| None: 0.93 | 0.467 | 1.00 | 1.00 | 0.500 |" in text


def test_measure_negatives(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = [root, "--model", tmp_path / "model", "--pairs", "bus:car,car:cat"]
    arguments += ["--episodes", 1, "--min-area", 1]
    script = runpy.run_path(str(EXAMPLES / "measure_negatives.py"))
    monkeypatch.setattr("sys.argv", ["measure_negatives.py", *map(str, arguments)])
    caplog.set_level(logging.INFO)
    script["main"]()
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in caplog.messages[1:]}
    assert rows.keys() == {"none", "image", "mask"}
    areas = {name: float(values[0]) for name, values in rows.items()}
    assert np.all([areas[name] <= areas["none"] for name in ("image", "mask")])


def test_measure_quality(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = [root, "--model", tmp_path / "model", "--classes", "bus,cat", "--episodes", 2]
    script = runpy.run_path(str(EXAMPLES / "measure_quality.py"))
    monkeypatch.setattr("sys.argv", ["measure_quality.py", *map(str, arguments)])
    caplog.set_level(logging.INFO)
    script["main"]()
    rows = {line.split("|")[1].strip(): line.split("|")[2:5] for line in caplog.messages[1:]}
    assert rows.keys() == script["OPTIONS"].keys()
    assert all(0 <= float(value) <= 1 for values in rows.values() for value in values[:2])
    assert float(rows["none"][2]) == 1.0


def test_select_supports(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    script = runpy.run_path(str(EXAMPLES / "select_supports.py"))
    monkeypatch.setattr("rate_supports.LEAST_OF_CLASS", 3)
    arguments = [root, "--list", "val", "--model", tmp_path / "model", "--pools", 3]
    arguments += ["--pool", 3, "--choose", 1, "--queries", 1]
    monkeypatch.setattr("sys.argv", ["select_supports.py", *map(str, arguments)])
    script["main"]()
    assert "gain in the mean IoU of a query" in capsys.readouterr().out


def test_measure_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(contrast=True).save_pretrained(tmp_path / "model")
    boxes = [{(5, 5, 40, 65): 6}, {(5, 5, 40, 65): 7}, {(5, 5, 30, 65): 6, (40, 5, 65, 65): 7}]
    labels = {f"2008_{i:06}": trees.boxes_label((70, 80), boxes[i % 3]) for i in range(9)}
    root = trees.voc(tmp_path, labels) / "VOCdevkit" / "VOC2012"
    arguments = [root, "--model", tmp_path / "model", "--pairs", "bus:car", "--shots", 1, 3]
    script = runpy.run_path(str(EXAMPLES / "measure_classes.py"))
    monkeypatch.setattr("sys.argv", ["measure_classes.py", *map(str, arguments)])
    caplog.set_level(logging.INFO)
    script["main"]()
    assert "{'bus+car': 3}" in caplog.text
    rows = [line.split("|")[1:-1] for line in caplog.messages if line.startswith("| ")][1:]
    assert [int(row[0]) for row in rows] == [1, 3]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[1:])
