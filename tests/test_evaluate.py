"""`hdmnet evaluate`, on small data sets in the real formats."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")

import trees
from conftest import make
from PIL import Image

from hdmnet import cli
from hdmnet.data import EpisodeDataset, EpisodeList, EvalTransform, PairList, PascalVOC
from hdmnet.metrics import FewShotIoU

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """A function that runs the command in this process and returns its results."""
    make().save_pretrained(tmp_path / "model")

    def call(*arguments: object, out: str = "out") -> dict[str, Any]:
        options = ["--model", tmp_path / "model", "--out", tmp_path / out]
        if "--load" not in arguments:
            options += ["--episodes", 6]
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", *map(str, [*arguments, *options])])
        if stop.value.code:
            raise stop.value
        return json.loads((tmp_path / out / "results.json").read_text())

    return call


def make_voc(root: Path) -> Path:
    """Write ten images of several sizes, of two classes of fold 1, with ignored borders."""
    labels = {}
    for i in range(10):
        box = (8 + i, 8, 70 + i, 60)
        border = (6 + i, 6, 72 + i, 62)
        labels[f"2008_{i:06}"] = trees.boxes_label((90, 100 + 5 * i), {border: 255, box: 6 + i % 2})
    return trees.voc(root, labels)


NEVER = "ignore:no episode asked for"


@pytest.mark.filterwarnings(NEVER)
def test_pascal(evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_voc(tmp_path)
    results = evaluate("pascal", root, "--fold", 1, "--shots", 2, "--pictures", 2)
    scores = results["scores"]
    assert [scores["episodes/bus"], scores["episodes/car"]] == [3, 3]

    # The same scores, computed without the example.
    source = PascalVOC(root)
    episodes = EpisodeList.load(tmp_path / "out" / "episodes.json", source)
    assert results["episodes sha256"] == episodes.sha256
    model = make().fused()
    transform = EvalTransform(model.image_size, mean=model.backbone.mean, std=model.backbone.std)
    metric = FewShotIoU(("bus", "car", "cat", "chair", "cow"))  # only bus and car have images
    for item in EpisodeDataset(episodes, transform):
        batch = {name: value[None] for name, value in item.items()}
        final = model(batch["query"], batch["supports"], batch["masks"]).final
        mask = transform.restore(final, tuple(item["target"].shape)).argmax(dim=1)
        metric.update(mask, batch["target"], batch["label"])
    for name, value in metric.compute().items():
        found = scores[name]
        assert value.isnan() if found is None else found == pytest.approx(value.item(), abs=1e-6)
    assert scores["episodes/cow"] == 0

    table = (tmp_path / "out" / "results.md").read_text()
    assert f"| **mIoU** | | {100 * scores['final/mIoU']:.1f} |" in table
    pictures = sorted((tmp_path / "out").glob("*.jpg"))
    assert [path.name for path in pictures] == ["episode-0000-bus.jpg", "episode-0001-car.jpg"]
    with Image.open(pictures[0]) as picture:
        assert picture.height == 240
        assert picture.width > 3 * 240

    listed = tmp_path / "out" / "episodes.json"
    again = evaluate("pascal", root, "--fold", 1, "--load", listed, out="again")
    assert {k: v and pytest.approx(v) for k, v in scores.items()} == again["scores"]
    assert (again["shots"], again["episodes"]) == (2, 6)  # from the list, not from the command
    assert again["model fingerprint"] == make().fingerprint()
    assert again["arguments"]["shots"] is again["arguments"]["seed"] is None
    assert again["scores"]["final/IoU/cow"] is None  # JSON has no NaN
    with pytest.raises(SystemExit, match=str(cli.ERROR)):
        evaluate("pascal", root, "--fold", 0, "--load", listed, out="again")
    assert "lists classes that are not in fold 0" in capfd.readouterr().err


@pytest.mark.filterwarnings(NEVER)
def test_pairs(evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_voc(tmp_path)
    pairs = tmp_path / "fold1.txt"
    pairs.write_text("".join(f"2008_{i:06}__{6 + i % 2}\n" for i in (0, 1, 2, 3)))
    results = evaluate("pascal", root, "--fold", 1, "--pairs", pairs, "--shots", 2)
    episodes = EpisodeList.load(tmp_path / "out" / "episodes.json", PascalVOC(root))
    assert list(episodes) == list(PairList(PascalVOC(root), pairs, shots=2, length=6))
    assert [results["scores"][f"episodes/{name}"] for name in ("bus", "car", "cat")] == [3, 3, 0]
    with pytest.raises(SystemExit, match=str(cli.ERROR)):
        evaluate("pascal", root, "--pairs", pairs)
    assert "fold1.txt lists classes that are not in fold 0" in capfd.readouterr().err
    for options, hint in {
        ("--fold", 1, "--class", "bus", "--pairs", pairs): "classes that are not asked for",
        ("--fold", 0, "--class", "bus"): "--class bus: expected one of aeroplane, bicycle",
        ("--class", "bus", "--load", pairs): "leave out --class",
        ("--shots", 1, "--load", pairs): "leave out --shots",
        ("--min-area", 1, "--load", pairs): "leave out --min-area",
        ("--pairs", pairs, "--load", pairs): "leave out --pairs",
    }.items():
        with pytest.raises(SystemExit, match=str(cli.ERROR)):
            evaluate("pascal", root, *options)
        assert hint in capfd.readouterr().err


def test_classes_without_episodes(
    evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        evaluate("pascal", make_voc(tmp_path), "--fold", 1)
    assert "warning: no episode asked for cat, chair, cow" in capfd.readouterr().err


@pytest.mark.filterwarnings(NEVER)
def test_coco(evaluate: Evaluate, tmp_path: Path) -> None:
    size, box = (80, 90), (5, 5, 65, 70)
    images = [(f"{i}.jpg", size, [(90 - i % 2, trees.polygon(box), False)]) for i in range(6)]
    categories = {i + 11: f"class {i}" for i in range(1, 81)}
    folder, table = trees.coco(tmp_path / "made", images, categories)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    folder.rename(tmp_path / "coco" / "val2014")
    table.rename(tmp_path / "coco" / "annotations" / "instances_val2014.json")
    # Category 89 is class 78: in fold 1 by default, but in fold 3 of the contiguous split.
    root = tmp_path / "coco"
    scores = evaluate("coco", root, "--fold", 1, "--cache", tmp_path / "areas.json")["scores"]
    assert scores["episodes/class 78"] == 6
    assert (tmp_path / "areas.json").is_file()
    split = ("--fold", 3, "--coco-split", "contiguous", "--resize", "stretch")
    assert evaluate("coco", root, *split)["scores"]["episodes/class 79"] == 3


def test_other_data(evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = trees.fss(tmp_path / "fss", ["abacus", "zebra"])
    names = tmp_path / "names.txt"
    names.write_text("zebra\n")
    scores = evaluate("fss", root, "--list", names)["scores"]
    assert [name for name in scores if name.startswith("episodes")] == ["episodes/zebra"]
    folders = trees.mask_folders(tmp_path / "own", {"nut": (5, 5, 25, 25), "bolt": (30, 8, 60, 40)})
    scores = evaluate("folders", folders)["scores"]
    assert scores["episodes/nut"] > 0
    assert scores["episodes/bolt"] > 0
    scores = evaluate("folders", folders, "--class", "bolt")["scores"]
    assert [name for name in scores if name.startswith("episodes")] == ["episodes/bolt"]
    assert scores["episodes/bolt"] == 6
    with pytest.raises(SystemExit, match=str(cli.ERROR)):
        evaluate("folders", folders, "--class", "nail")
    assert "--class nail: expected one of bolt, nut" in capfd.readouterr().err
    with pytest.raises(SystemExit, match=str(cli.ERROR)):
        evaluate("json", folders)
    assert "json needs --annotations" in capfd.readouterr().err


@pytest.mark.filterwarnings(NEVER)
@pytest.mark.slow
def test_two_processes_score_the_same(evaluate: Evaluate, tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    arguments = ["pascal", root, "--fold", "1", "--episodes", "7", "--model", tmp_path / "model"]
    arguments += ["--cache", tmp_path / "areas.json"]
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "hdmnet", "evaluate", *arguments, "--out", tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    one = evaluate("pascal", root, "--fold", 1, "--load", tmp_path / "two" / "episodes.json")
    assert json.dumps(two["scores"]) == json.dumps(one["scores"])
    assert sum(v for k, v in two["scores"].items() if k.startswith("episodes/")) == 7
