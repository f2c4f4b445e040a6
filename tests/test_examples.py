"""The examples, as a user would run them, the training ones for a few steps."""

import csv
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet import HDMNet, load_mask

for module in ("accelerate", "lightning", "segmentation_models_pytorch", "torchmetrics"):
    pytest.importorskip(module, reason="needs hdmnet[examples]")

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"
# One thread, because sums over several threads may round differently.
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL = ["--count", "24", "--size", "64", "--episodes", "1"]


def start(name: str, *arguments: object, processes: int = 0, ok: bool = True) -> str:
    """Start an example, which must succeed, or fail if not `ok`, and return its output.

    With `processes`, torchrun starts it.
    """
    launch = [sys.executable]
    if processes:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, EXAMPLES / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout + done.stderr


def run(name: str, *arguments: object) -> None:
    """Run an example in this process: starting one takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def small(small_lite0: Path) -> list[str]:
    """Options of a short run that starts from the bundled weights."""
    return [*SMALL, "--model", str(small_lite0)]


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few pictures, shared by all tests."""
    folder = tmp_path_factory.mktemp("particles")
    run("particles", folder, "--count", 24)
    return folder


def read_curve(folder: Path) -> list[tuple[int, float]]:
    return [(step, score) for step, score in json.loads((folder / "curve.json").read_text())]


def test_resuming_gives_the_same_bits(particles: Path, small: list[str], tmp_path: Path) -> None:
    options = [*small, "--steps", "6", "--every", "2", "--batch", "2"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    start("finetune_torch", particles, whole, *options)

    command = [sys.executable, EXAMPLES / "finetune_torch.py", particles, halved, *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while not (halved / "state.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(halved / "state.pt", weights_only=True)["step"] < 6
    start("finetune_torch", particles, halved, *options, "--resume")

    ours, theirs = (
        torch.load(folder / "state.pt", weights_only=True) for folder in (whole, halved)
    )
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    moments = (state["optimiser"]["state"] for state in (ours, theirs))
    torch.testing.assert_close(*moments, rtol=0, atol=0)
    assert read_curve(whole) == read_curve(halved)
    assert [step for step, _ in read_curve(whole)] == [0, 2, 4, 6]


def test_two_processes_have_the_gradients_of_one() -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            Path(__file__).with_name("in_two_processes.py"),
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same gradients") == 3


def test_torchrun(particles: Path, small: list[str], tmp_path: Path) -> None:
    options = [*small, "--every", "1", "--batch", "2"]
    start("finetune_torch", particles, tmp_path, *options, "--steps", "2", processes=2)
    assert [step for step, _ in read_curve(tmp_path)] == [0, 1, 2]
    before = HDMNet.from_pretrained(tmp_path / "model").state_dict()
    start("finetune_torch", particles, tmp_path, *options, "--steps", "3", "--resume", processes=2)
    assert [step for step, _ in read_curve(tmp_path)] == [0, 1, 2, 3]
    after = HDMNet.from_pretrained(tmp_path / "model").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert moved(tmp_path / "model")


def moved(model: Path) -> bool:
    """Return whether all trainable weights changed. Check that backbone and classifier did not."""
    before = HDMNet.from_pretrained("hdmnet-lite0").state_dict()
    after = HDMNet.from_pretrained(model).state_dict()
    frozen = [name for name in before if name.startswith(("backbone.", "presence."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    weights = [n for n in before if n not in frozen and n.endswith("weight") and before[n].ndim > 1]
    return all(not torch.equal(before[name], after[name]) for name in weights)


def test_lightning(
    particles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*small, "--steps", "2", "--every", "1", "--batch", "2"]
    start("finetune_lightning", particles, tmp_path, *options)
    assert moved(tmp_path / "model")
    (log,) = tmp_path.glob("log/*/metrics.csv")
    with log.open() as file:
        logged = [row["held_out/mIoU"] for row in csv.DictReader(file)]
    first = next(float(score) for score in logged if score)  # before training
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from particles import measure, open_split  # as the other examples measure

    model = HDMNet.from_pretrained(small[-1])
    assert first == pytest.approx(
        measure(model, open_split(particles, "test"), episodes=1), abs=1e-3
    )


def test_accelerate(particles: Path, small: list[str], tmp_path: Path) -> None:
    options = [*small, "--steps", "2", "--every", "1", "--batch", "2", "--bf16"]
    start("finetune_accelerate", particles, tmp_path, *options)
    assert [step for step, _ in read_curve(tmp_path)] == [0, 1, 2]
    assert moved(tmp_path / "model")


@pytest.mark.parametrize("name", ["finetune_torch", "finetune_lightning", "finetune_accelerate"])
def test_own_folders(name: str, small_lite0: Path, tmp_path: Path) -> None:
    import trees  # needs hdmnet[eval]

    boxes = {"bolt": (5, 5, 40, 60), "nut": (20, 10, 70, 50), "screw": (30, 30, 90, 70)}
    own = trees.mask_folders(tmp_path / "own", boxes, size=(80, 96))
    before = sorted(own.rglob("*"))
    options = ["--size", 64, "--episodes", 4, "--steps", 2, "--every", 2, "--batch", 2]
    options += ["--model", small_lite0]
    start(name, "--folders", own, tmp_path / "run", *options)
    assert moved(tmp_path / "run" / "model")
    assert sorted(own.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "run"]


def test_both_stages_of_training(particles: Path, small_lite0: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--steps", "2", "--every", "2", "--batch", "2"]
    run("train_base_learner", particles, tmp_path / "base", *options, "--start", small_lite0)
    learner = HDMNet.from_pretrained(tmp_path / "base" / "model")
    assert (learner.config["base_classes"], learner.frozen_norm) == (12, True)
    start = HDMNet.from_pretrained("hdmnet-lite0").backbone.state_dict()
    assert any(not torch.equal(x, learner.backbone.state_dict()[n]) for n, x in start.items())
    model = ("--model", tmp_path / "base" / "model")
    run("finetune_torch", particles, tmp_path / "full", *options, *model)
    full = HDMNet.from_pretrained(tmp_path / "full" / "model").state_dict()
    for name, value in learner.state_dict().items():
        if name.startswith(("backbone.", "psp.", "base_learner.")):
            assert torch.equal(full[name], value)


def test_adapting(particles: Path, small_lite0: Path, tmp_path: Path) -> None:
    options = ["--size", "64", "--steps", "1", "--episodes", "1", "--shots", "2"]
    options += ["--model", str(small_lite0)]
    run("adapt_to_supports", particles, tmp_path, *options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"crescent", "flower", "cross", "gear", "mean"}
    assert any(before != after for before, after in results.values())


def test_reusing_blocks(particles: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--steps", "2", "--every", "2", "--batch", "2"]
    run("reuse_blocks", particles, tmp_path, *options)
    assert [step for step, _ in read_curve(tmp_path)] == [0, 2]
    assert (tmp_path / "weights.pt").is_file()


def test_examples_are_short() -> None:
    names = ["finetune_torch", "finetune_lightning", "finetune_accelerate", "train_base_learner"]
    for name in [*names, "adapt_to_supports", "reuse_blocks", "label_with_ray"]:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 120, name


def test_car_parts(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (source / folder).mkdir(parents=True)
    names = {"0": "_background_", "1": "left_mirror", "2": "right_mirror", "3": "tailgate"}
    (source / "classes.json").write_text(json.dumps(names))
    labels = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)  # two rows of each
    for number in range(3):
        Image.new("RGB", (8, 8)).save(source / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(labels).save(source / "SegmentationClassAug" / f"{number}.png")
    run("car_parts", source, tmp_path / "out", "--photographs", 2)
    out = tmp_path / "out"
    made = sorted(str(file.parent.relative_to(out)) for file in out.glob("*/*/*"))
    assert made == ["mirror/images", "mirror/masks", *2 * ["trunk/images"], *2 * ["trunk/masks"]]
    mask = load_mask(next((out / "mirror" / "masks").iterdir()))
    assert mask.equal(torch.from_numpy((labels == 1) | (labels == 2)).to(mask.dtype))


def test_average_weights(tmp_path: Path) -> None:
    before, after = HDMNet.from_pretrained("hdmnet-lite0"), HDMNet.from_pretrained("hdmnet-lite0")
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(0.25)
    after.save_pretrained(tmp_path / "tuned")
    run("average_weights", tmp_path / "tuned", tmp_path / "out", "--share", 0.75)
    found = HDMNet.from_pretrained(tmp_path / "out")
    for (name, old), new in zip(before.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1875, rtol=0, atol=1e-6, msg=name)
    assert found.presence.center == before.presence.center
    other = start(
        "average_weights", tmp_path / "tuned", tmp_path / "x", "--from", "hdmnet-lite0@1", ok=False
    )
    assert "different configurations" in other


def test_look_inside(tmp_path: Path) -> None:
    run("look_inside", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels < 250).mean() > 0.6  # the panels are full


@pytest.mark.parametrize("name", ["annotations", "quality"])
@pytest.mark.usefixtures("small_bundled")
def test_pictures_of_the_docs(name: str, tmp_path: Path) -> None:
    run(f"draw_{name}", tmp_path / "picture.jpg")
    committed = EXAMPLES.parent / "docs" / f"{name}.jpg"
    with Image.open(tmp_path / "picture.jpg") as drawn, Image.open(committed) as shown:
        assert drawn.size == shown.size


def test_draw_shares(tmp_path: Path) -> None:
    for share in ("0", "0.5", "1"):
        (tmp_path / "results" / share).mkdir(parents=True)
        scores = {"final/IoU/hood": 0.3, "final/IoU/wheel": 0.5, "final/mIoU": 0.4}
        text = json.dumps({"scores": scores})
        (tmp_path / "results" / share / "results.json").write_text(text)
    run("draw_shares", tmp_path / "results", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert (np.asarray(picture.convert("RGB")) == (209, 73, 91)).all(axis=-1).any()  # the mean
