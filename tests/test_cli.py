"""The command `hdmnet`, with the bundled model and real photographs."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hdmnet
from hdmnet import Box, HDMNet, Points, SupportSet, cli
from hdmnet.cli.doctor import STORED
from hdmnet.cli.files import find_images

needs_eval = pytest.mark.skipif(not find_spec("pycocotools"), reason="needs hdmnet[eval]")
DATA = Path(__file__).parents[1] / "examples" / "data"
FISH, PEOPLE, FELINES = DATA / "fish", DATA / "person", DATA / "feline"


@pytest.fixture(scope="module")
def model(small_lite0: Path) -> HDMNet:
    return HDMNet.from_pretrained(small_lite0).fused()


@pytest.fixture(scope="module")
def use(small_lite0: Path) -> str:
    """The option that makes a command use the model of these tests."""
    return f"--model={small_lite0}"


@pytest.fixture(scope="module")
def masked(use: str) -> list[str]:
    """This model, and the fish as the class."""
    return [use, f"--support={FISH}/support_1.jpg", f"--mask={FISH}/support_1.png"]


@pytest.fixture(scope="module")
def fish(model: HDMNet) -> SupportSet:
    return model.encode_supports(FISH / "support_1.jpg", FISH / "support_1.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photographs, one of them in a subfolder."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    shutil.copy(FISH / "query_1.jpg", tmp_path / "photos" / "a.jpg")
    shutil.copy(FISH / "query_2.jpg", tmp_path / "photos" / "more" / "b.v2.jpg")
    return tmp_path / "photos"


def run(*arguments: object) -> int:
    """Run a command in this process. Return its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(x) for x in arguments])
    return int(stop.value.code or 0)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that must fail. Return its error: one line, and then a hint."""

    def run_and_read(*arguments: object) -> str:
        capfd.readouterr()
        assert run(*arguments) == cli.ERROR
        out, error = capfd.readouterr()
        line, hint = error.splitlines()
        assert not out
        assert re.fullmatch("hint: .+ --help", hint)
        return line

    return run_and_read


def test_help_needs_no_pytorch() -> None:
    code = "import sys, hdmnet.cli as c; c.main(['--help'])"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "segment" in done.stdout
    assert done.stdout.endswith("False\n")


def test_public_names() -> None:
    """What `import hdmnet` promises is what it imports later."""
    source = ast.parse(Path(hdmnet.__file__).read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported.pop("convert") == "hdmnet"
    assert imported == {name: f"hdmnet.{home}" for name, home in hdmnet._HOME_OF.items()}
    assert set(hdmnet.__all__) == {*imported, "convert"}
    assert set(hdmnet.__all__) <= set(dir(hdmnet))
    with pytest.raises(AttributeError, match="no attribute 'HDMnet'"):
        _ = hdmnet.HDMnet
    code = "import hdmnet; print(hdmnet.images.__name__, hdmnet.nn.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "hdmnet.images hdmnet.nn\n"


@pytest.mark.parametrize("name", ["", *cli.cli.commands])
def test_each_help_has_what_it_needs(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*([name] if name else []), "--help") == 0
    text = capfd.readouterr().out
    assert "Usage: " in text
    assert "Example" in text


def test_masks_equal_those_of_predict(
    masked: list[str], model: HDMNet, fish: SupportSet, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("segment", photos, *masked, "--out", out, "--overlay") == 0
    for name, query in {"a": "query_1.jpg", "more/b.v2": "query_2.jpg"}.items():
        mask = model.predict(FISH / query, fish).mask.numpy()
        assert (read(out / f"{name}.png") == 255 * mask).all()
        assert read(out / f"{name}_overlay.jpg").shape[:2] == mask.shape
    assert sorted(x.name for x in out.rglob("*.*")) == [
        "a.png", "a_overlay.jpg", "b.v2.png", "b.v2_overlay.jpg", "hdmnet.jsonl",
    ]  # fmt: skip


def test_options_reach_predict(
    masked: list[str], model: HDMNet, fish: SupportSet, photos: Path, tmp_path: Path
) -> None:
    options = ["--flip", "--refine", "--tile", 300, "--presence-threshold", 0.2, "--batch-size", 2]
    assert run("segment", photos / "a.jpg", *masked, "--out", tmp_path / "out", *options) == 0
    mask = model.predict(
        FISH / "query_1.jpg",
        fish,
        augment=hdmnet.Augment(flip=True),
        refine=True,
        tile=300,
        presence_threshold=0.2,
    ).mask
    assert (read(tmp_path / "out" / "a.png") == 255 * mask.numpy()).all()
    again = [photos / "a.jpg", *masked, "--out", tmp_path / "again", "--self-support"]
    assert run("segment", *again) == 0
    mask = model.predict(FISH / "query_1.jpg", fish, self_support=True).mask
    assert (read(tmp_path / "again" / "a.png") == 255 * mask.numpy()).all()
    assert run("segment", photos / "a.jpg", *masked, "--out", tmp_path / "all", "--presence-threshold", 1) == 0  # fmt: skip # noqa: E501
    assert not read(tmp_path / "all" / "a.png").any()


@needs_eval
def test_several_classes(
    use: str, model: HDMNet, fish: SupportSet, photos: Path, tmp_path: Path
) -> None:
    fish.save(tmp_path / "fish.safetensors")
    people = tmp_path / "people"
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (people / kind).mkdir(parents=True)
        for i in (1, 2):
            shutil.copy(PEOPLE / f"support_{i}.{suffix}", people / kind)
    classes = [f"--class=fish={tmp_path}/fish.safetensors", f"--class=person={people}"]
    formats = ["--format=png", "--format=coco", "--format=json"]
    out = tmp_path / "out"
    assert (
        run("segment", photos, PEOPLE / "query_1.jpg", use, *classes, *formats, "--out", out) == 0
    )
    person = model.encode_supports(
        [PEOPLE / f"support_{i}.jpg" for i in (1, 2)], [PEOPLE / f"support_{i}.png" for i in (1, 2)]
    )
    many = model.predict(PEOPLE / "query_1.jpg", {"fish": fish, "person": person})
    picture = Image.open(out / "query_1.png")
    assert picture.mode == "P"
    assert (np.asarray(picture) == many.labels.numpy()).all()

    about = json.loads((out / "query_1.json").read_text())
    assert [x["name"] for x in about["classes"]] == ["fish", "person"]
    shown, mask = about["classes"][1], many.labels.numpy() == 2
    assert shown["presence"] == pytest.approx(many["person"].presence, abs=1e-4)
    assert shown["area"] == pytest.approx(mask.mean(), abs=1e-6)
    rows, columns = mask.nonzero()
    assert shown["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

    from pycocotools.coco import COCO

    coco = COCO(out / "coco.json")  # pycocotools reads it
    assert [x["name"] for x in coco.loadCats(coco.getCatIds())] == ["fish", "person"]
    image = next(x for x in coco.imgs.values() if x["file_name"].endswith("person/query_1.jpg"))
    found = {x["category_id"]: x for x in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))}
    assert (coco.annToMask(found[2]) == (many.labels.numpy() == 2)).all()
    assert found[2]["area"] == (many.labels == 2).sum()


def test_annotations_belong_to_the_support_before(
    use: str, model: HDMNet, photos: Path, tmp_path: Path
) -> None:
    box, first, second = Box(28, 30, 294, 119), FISH / "support_1.jpg", PEOPLE / "support_1.jpg"
    points = Points([(100, 68), (240, 60)], negative=[(20, 20)])
    shown = ["--support", first, "--point", "100,68", "--point", "240,60", "--not-point", "20,20"]
    shown += ["--support", second, "--mask", PEOPLE / "support_1.png"]
    shown += ["--support", first, "--box", "28,30,294,119"]
    out = tmp_path / "class.safetensors"
    assert run("encode", use, *shown, "--negative", FELINES / "query_1.jpg", "--out", out) == 0
    masks = [points, PEOPLE / "support_1.png", box]
    expected = model.encode_supports([first, second, first], masks, [FELINES / "query_1.jpg"])
    found, query = SupportSet.load(out), photos / "a.jpg"
    same = model.predict(query, expected).probability
    assert torch.equal(model.predict(query, found).probability, same)

    two = ["--support", first, "--support", second]  # masks after all supports: in their order
    two += ["--mask", FISH / "support_1.png", "--mask", PEOPLE / "support_1.png"]
    assert run("encode", use, *two, "--out", out) == 0
    masks = [FISH / "support_1.png", PEOPLE / "support_1.png"]
    expected = model.encode_supports([first, second], masks)
    same = model.predict(query, expected).probability
    assert torch.equal(model.predict(query, SupportSet.load(out)).probability, same)


@needs_eval
def test_a_repeated_command_goes_on(
    masked: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["segment", photos, *masked, "--out", out, "--format=png", "--format=coco"]
    assert run(*command) == 0
    before = (out / "coco.json").read_text()
    (out / "more/b.v2.png").unlink()
    with (out / "hdmnet.jsonl").open("a") as file:
        file.write('{"name": "a", "file')  # what a crash leaves
    times = (out / "a.png").stat().st_mtime_ns
    capfd.readouterr()
    assert run(*command) == 0
    assert "skipped: 1 of 2 images have an answer already" in capfd.readouterr().err
    assert (out / "a.png").stat().st_mtime_ns == times
    assert (out / "more/b.v2.png").exists()
    assert (out / "coco.json").read_text() == before
    assert run(*command, "--overwrite") == 0
    assert (out / "a.png").stat().st_mtime_ns > times
    assert (out / "coco.json").read_text() == before


def test_other_answers_do_not_mix(
    use: str, masked: list[str], small_lite0: Path, photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """What is there was made of other supports, options, weights, images, or not by the command."""
    out = tmp_path / "out"
    command = ["segment", photos / "a.jpg", *masked, "--out", out]
    assert run(*command) == 0
    before = read(out / "a.png")
    other = [use, f"--support={PEOPLE}/support_1.jpg", f"--mask={PEOPLE}/support_1.png"]
    error = refuse("segment", photos, *other, "--out", out)
    assert "another value of classes: choose another --out, or give --overwrite" in error
    assert "another value of options" in refuse(*command, "--flip")
    shutil.copytree(small_lite0, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["presence"]["threshold"] = 0.0  # no other supports, but other answers
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert "another value of model" in refuse(*command, "--model", tmp_path / "model")
    (tmp_path / "day2").mkdir()
    shutil.copy(FISH / "query_2.jpg", tmp_path / "day2" / "a.jpg")
    error = refuse("segment", tmp_path / "day2", *masked, "--out", out)
    assert "which is another image than" in error
    (out / "more").mkdir()
    (out / "more" / "b.v2.png").write_bytes((out / "a.png").read_bytes())
    error = refuse("segment", photos, *masked, "--out", out)
    assert "more/b.v2.png is there, but not from this command" in error
    assert (read(out / "a.png") == before).all()


@needs_eval
def test_an_old_answer_never_looks_like_the_new_one(
    masked: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["segment", photos / "a.jpg", *masked, "--out", out]
    whole = ["--format=png", "--format=json", "--overlay"]
    emptied = ["--presence-threshold=1", "--overwrite"]
    assert run(*command, *whole, "--presence-threshold=0") == 0
    assert json.loads((out / "a.json").read_text())["classes"][0]["area"] > 0
    assert run(*command, *emptied) == 0
    assert sorted(x.name for x in out.iterdir()) == ["a.png", "hdmnet.jsonl"]
    assert run(*command, *whole, emptied[0]) == 0
    assert json.loads((out / "a.json").read_text())["classes"][0]["area"] == 0
    assert (out / "a_overlay.jpg").exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hdmnet.Segmentation, "save", full)
        assert run(*command, "--presence-threshold=0", "--overwrite") == cli.ERROR
    assert run(*command, "--presence-threshold=0") == 0
    assert read(out / "a.png").any()


@needs_eval
def test_files_of_others_stay(
    masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("coco.json", "a.json"):
        (out / name).write_text('{"mine": true}')
    command = ["segment", photos / "a.jpg", *masked, "--out", out]
    assert "coco.json is there, but not from" in refuse(*command, "--format=coco")
    assert run(*command, "--format=png") == 0
    assert "a.json is there, but not from" in refuse(*command, "--format=json")
    assert (out / "a.json").read_text() == (out / "coco.json").read_text() == '{"mine": true}'


def test_an_image_that_was_replaced(
    masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """Its size in bytes may be the same, and its time may change without it."""
    Image.open(photos / "a.jpg").save(photos / "x.bmp")
    out = tmp_path / "out"
    command = ["segment", photos / "x.bmp", *masked, "--out", out]
    assert run(*command) == 0
    before = (out / "x.png").stat().st_mtime_ns
    os.utime(photos / "x.bmp", (1, 1))
    assert run(*command) == 0
    assert (out / "x.png").stat().st_mtime_ns == before
    Image.open(photos / "a.jpg").transpose(Image.Transpose.ROTATE_180).save(photos / "x.bmp")
    assert "which is another image than" in refuse(*command)


def test_links_that_go_round(photos: Path) -> None:
    (photos / "loop").symlink_to(photos)
    (photos / "more" / "back").symlink_to(photos)
    (photos / "a.png").symlink_to(photos / "a.jpg")
    (photos / "same").symlink_to(photos / "more")
    found = [path.relative_to(photos).as_posix() for path in find_images([str(photos)])]
    assert found == ["a.jpg", "a.png", "more/b.v2.jpg", "same/b.v2.jpg"]


def test_the_order_of_classes_counts(
    use: str, fish: SupportSet, photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    fish.save(tmp_path / "fish.safetensors")
    first, second = (f"--class={name}={tmp_path}/fish.safetensors" for name in "ab")
    out = tmp_path / "out"
    assert run("segment", photos / "a.jpg", use, first, second, "--out", out) == 0
    error = refuse("segment", photos / "a.jpg", use, second, first, "--out", out)
    assert "another value of classes" in error


@needs_eval
def test_overwriting_a_part_keeps_the_rest(
    use: str, masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    out = tmp_path / "out"
    command = ["segment", photos, *masked, "--out", out, "--format=png", "--format=coco"]
    assert run(*command) == 0
    before = (out / "coco.json").read_text()
    command[1] = photos / "a.jpg"
    assert run(*command, "--overwrite") == 0
    assert (out / "coco.json").read_text() == before
    other = [use, f"--support={PEOPLE}/support_1.jpg", f"--mask={PEOPLE}/support_1.png"]
    command[2:5] = other
    assert run(*command, "--overwrite") == 0
    images = json.loads((out / "coco.json").read_text())["images"]
    assert [x["file_name"] for x in images] == [f"{photos}/a.jpg"]  # not the fish beside people
    command[1] = photos
    assert "an answer to more/b.v2 that was made with another value" in refuse(*command)


def test_supports_of_another_model_leave_nothing(
    photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    old = HDMNet.from_pretrained("hdmnet-lite0@1")
    supports = old.encode_supports(FISH / "support_1.jpg", FISH / "support_1.png")
    supports.save(tmp_path / "old.safetensors")
    out = tmp_path / "out"
    error = refuse("segment", photos, f"--class=fish={tmp_path}/old.safetensors", "--out", out)
    assert "another model" in error
    assert not out.exists()


@needs_eval
def test_names_of_the_commands_own_files(
    masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse
) -> None:
    out = tmp_path / "out"
    for name in ("hdmnet", "coco"):
        shutil.copy(photos / "a.jpg", photos / f"{name}.jpg")
    command = ["segment", photos, *masked, "--out", out, "--format=json"]
    assert "coco.json would be the answer to" in refuse(*command, "--format=coco")
    assert run(*command) == 0
    assert json.loads((out / "hdmnet.json").read_text())["image"] == f"{photos}/hdmnet.jpg"
    assert run(*command) == 0


def test_a_damaged_journal(masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "hdmnet.jsonl").write_text("[]\n")
    assert "line 1 of" in refuse("segment", photos, *masked, "--out", out)


def test_a_name_that_is_too_long(
    masked: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "m" * 250  # with .jpg, it is just short enough; with _overlay.jpg, it is not
    shutil.copy(photos / "a.jpg", photos / f"{name}.jpg")
    (photos / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    out = tmp_path / "out"
    assert run("segment", photos, *masked, "--out", out, "--overlay") == 2
    error = capfd.readouterr().err.replace("\n", "")
    assert "its name is too long" in error
    assert "lost.jpg" in error
    assert {path.name for path in out.rglob("*.png")} == {"a.png", "b.v2.png"}


def test_bad_images_are_counted(
    masked: list[str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.jpg").write_bytes((photos / "a.jpg").read_bytes()[:700])
    (photos / "empty.png").touch()
    (photos / "notes.txt").touch()  # no image, and not counted
    out = tmp_path / "out"
    assert run("segment", photos, *masked, "--out", out, "--batch-size", 3) == 2
    error = capfd.readouterr().err
    assert error.count("failed: image") == 2
    assert f"{photos}/bad.jpg" in error.replace("\n", "")
    assert error.index("bad.jpg") < error.index("empty.png")
    assert f"answers written to {out}: 2; images failed: 2" in error.replace("\n", "")
    assert {x.name for x in out.rglob("*.png")} == {"a.png", "b.v2.png"}


def test_wrong_commands(masked: list[str], photos: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = ["--out", tmp_path / "out"]
    support = f"--support={FISH}/support_1.jpg"
    mask = f"--mask={FISH}/support_1.png"
    for arguments, expected in (
        ([photos], "there is no --support"),
        ([photos, support], "no --mask, --box or --point follows --support"),
        ([photos, support, mask, "--box", "1,2,9,9"], "1 masks, 1 boxes and 0 points"),
        ([photos, mask, support, "--point", "9,9"], "stands before any --support"),
        ([photos, support, mask, "--not-point", "9,9"], "--not-point without --point"),
        (
            [photos, support, "--box", "1,2,9,9", "--box", "1,2,8,8", support],
            "0 masks, 2 boxes and 0 points",
        ),
        (["", support, mask], "an argument is empty"),
        ([photos, support, "--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        ([photos, support, "--box", "9,2,3,8"], "x0 < x1"),
        ([photos, support, "--point", "9999,1"], "outside its image"),
        ([photos, *masked, "--class", "a=b"], "got --class and --support"),
        ([photos, "--class", "a=nothing"], "expected NAME=PATH"),
        ([photos, "--class", f"a={photos}"], "a.jpg has no mask: expected"),
        ([tmp_path / "none", *masked], "does not exist"),
        ([tmp_path / "no*.jpg", *masked], "holds no image"),
        (
            [
                photos / "a.jpg",
                FISH / "../fish/query_1.jpg",
                photos / "a.jpg",
                *masked,
                "--model",
                "light0",
            ],
            "'light0' is not a bundled model",
        ),
        ([photos, *masked, "--out", FISH / "query_1.jpg"], "is a file"),
        ([photos, *masked, "--device", "warp"], "--device warp cannot be used"),
        ([photos, *masked, "--tile", "1"], "tile"),
        ([photos, *masked, "--presence-threshold", "2"], "--presence-threshold"),
    ):
        assert expected in refuse("segment", *out, *arguments), arguments
    (photos / "a.png").touch()
    error = refuse("segment", photos, *masked, *out)
    assert f"{photos}/a.jpg and {photos}/a.png would both be answered in a" in error
    assert not (tmp_path / "out").exists()
    assert "is below" in refuse("segment", photos, *masked, "--out", photos)
    assert "is a folder" in refuse("encode", *masked, "--out", tmp_path)
    assert "only 2 supports" in refuse("rate", *masked, *masked, "--choose", 3)
    assert "--device warp cannot be used" in refuse("doctor", "--device", "warp")


def test_traceback(masked: list[str], photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["segment", photos, *masked, "--model=x", "--out=o"]
    assert run("--traceback", *arguments) == cli.ERROR
    error = capfd.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "hdmnet segment: 'x' is not a bundled model" in error


def test_patterns_and_answers_below_the_queries(
    masked: list[str], photos: Path, tmp_path: Path
) -> None:
    out = photos / "masks"
    assert run("segment", f"{photos}/**/*.jpg", *masked, "--out", out) == 0
    assert run("segment", photos, *masked, "--out", out) == 0  # masks are no queries
    assert {str(x.relative_to(out)) for x in out.rglob("*.png")} == {"a.png", "more/b.v2.png"}


def test_rate(use: str, model: HDMNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        for suffix in ("jpg", "png"):  # masks beside the images
            shutil.copy(PEOPLE / f"support_{i}.{suffix}", tmp_path)
    assert run("rate", use, tmp_path, "--choose", 1) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if "support_" in line]
    paths = [tmp_path / f"support_{i}" for i in (1, 2)]
    ratings = model.rate_supports(
        [path.with_suffix(".jpg") for path in paths], [path.with_suffix(".png") for path in paths]
    )
    for row, rating in zip(rows, ratings, strict=True):
        assert f"{rating.agreement:.2f}" in row
        assert f"support_{rating.index + 1}.jpg" in row
    assert [row.endswith("chosen") for row in rows] == [True, False]


def test_models(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    text = capfd.readouterr().out
    for info in hdmnet.list_pretrained():
        assert f"\n{info.name}: " in f"\n{text}"
        assert info.metric in text


def test_doctor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What it says of models as they should be is a part of `test_commands_of_the_page_run`."""
    monkeypatch.setitem(STORED, "hdmnet-lite0", (0.9,) * 6)
    assert run("doctor") == 1
    assert "hdmnet-lite0, float32: off by 0.7" in capfd.readouterr().out


def test_convert(tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {}}, path)
    assert "checkpoint" in refuse("convert", path, tmp_path / "out")
    torch.save(hdmnet.convert.to_official(HDMNet("vgg16", base_classes=15)), path)
    assert run("convert", path, tmp_path / "out", "--check") == 0
    assert HDMNet.from_pretrained(tmp_path / "out").config["backbone"] == "vgg16"


def test_warnings_are_lines(use: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("L", Image.open(FISH / "support_1.jpg").size).save(tmp_path / "empty.png")
    shown = [f"--support={FISH}/support_1.jpg", f"--mask={tmp_path}/empty.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run("encode", use, *shown, "--out", tmp_path / "x.safetensors") == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the mask of support 0 is empty")


@pytest.mark.slow
def test_export(use: str, model: HDMNet, fish: SupportSet, photos: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs hdmnet[onnx]")
    fish.save(tmp_path / "fish.safetensors")
    baked = ["export", tmp_path / "fish", use, "--class", tmp_path / "fish.safetensors"]
    assert run(*baked) == 0
    session = onnxruntime.InferenceSession(tmp_path / "fish" / "segment.onnx")
    (answer,) = session.run(None, {"image": read(photos / "a.jpg")})
    expected = model.predict(photos / "a.jpg", fish).probability.numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    baked[1] = tmp_path / "int8"
    assert run(*baked, "--int8", photos) == 0
    assert [x.name for x in (tmp_path / "int8").iterdir()] == ["segment.onnx"]
    size = (tmp_path / "fish" / "segment.onnx").stat().st_size
    assert (tmp_path / "int8" / "segment.onnx").stat().st_size < size


@needs_eval
@pytest.mark.slow
def test_interrupted(masked: list[str], photos: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves whole files only, and the same command goes on."""
    pixels = (photos / "a.jpg").read_bytes()
    for i in range(40):
        (photos / f"{i:03}.jpg").write_bytes(pixels)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hdmnet", "segment", str(photos), *masked, "--out", str(out)]
    command += ["--overlay", "--format=png", "--format=coco"]
    started = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(list(out.glob("*.png"))) < 5:
        assert started.poll() is None, started.stderr and started.stderr.read()
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, error = started.communicate(timeout=60)
    assert started.returncode == cli.INTERRUPTED
    assert "stopped" in error
    assert "Traceback" not in error
    assert not list(out.glob(".*.tmp"))
    masks = {path.name for path in out.glob("*.png")}
    assert 5 <= len(masks) < 40
    for name in masks:
        assert read(out / name).shape == (251, 320)
    assert len(json.loads((out / "coco.json").read_text())["images"]) >= len(masks)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"skipped: {len(masks)} of 42 images" in done.stderr
    assert len(list(out.rglob("*.png"))) == 42
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 42


@pytest.mark.parametrize(
    ("shell", "word", "expected"),
    [
        ("bash", "2", "plain,--support\n"),
        ("zsh", "2", "plain\n--support\nAn image that shows it.\n"),
        ("fish", "--sup", "plain,--support\tAn image that shows it.\n"),
    ],
)
def test_completion(shell: str, word: str, expected: str) -> None:
    """The shell completes commands and options."""
    environment = os.environ | {"COMP_WORDS": "hdmnet segment --sup", "COMP_CWORD": word}
    environment["_HDMNET_COMPLETE"] = f"{shell}_complete"
    code = "import sys; sys.argv = ['hdmnet']; from hdmnet.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == expected, done.stderr


def commands(page: str) -> list[list[str]]:
    """Read the commands `hdmnet ...` of a page."""
    text = (DATA.parents[1] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("hdmnet ")]


@pytest.mark.usefixtures("small_bundled")
def test_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DATA, tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    listed = commands("docs/command-line.md")
    assert len(listed) == 9
    for command in listed:
        assert run(*command) == 0, capfd.readouterr().err
    assert listed[-1] == ["doctor"]
    assert capfd.readouterr().out.count(": ok\n") == 6
    assert read(tmp_path / "labels" / "fish" / "query_1.png").ndim == 2
