"""What the training examples share: where they read and write. `test_examples.py` runs them."""

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")

import trees

BOX = (5, 5, 25, 25)


@pytest.fixture
def particles(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    return importlib.import_module("particles")


def own(folder: Path, *names: str) -> Path:
    return trees.mask_folders(folder, dict.fromkeys(names, BOX), count=2)


def test_nothing_is_drawn_into_a_folder_of_others(particles: ModuleType, tmp_path: Path) -> None:
    folder = own(tmp_path, "nut", "train")
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit, match="holds other files: name a new folder"):
        particles.make(folder, 3)
    assert sorted(folder.rglob("*")) == before


def test_what_was_drawn_is_drawn_on(particles: ModuleType, tmp_path: Path) -> None:
    particles.make(tmp_path, 3)
    (tmp_path / "test.json").unlink()
    particles.make(tmp_path, 3)
    train, test = particles.open_pictures(Namespace(folders=None, data=tmp_path, count=3))
    assert (train.classes, test.classes) == (particles.TRAIN, particles.TEST)


def parse(particles: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> Namespace:
    monkeypatch.setattr("sys.argv", ["example", *map(str, words)])
    return particles.parse(particles.arguments("Test.", steps=1, batch=1, lr=0.1, folders=True))


def test_command_line(
    particles: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine, run = own(tmp_path / "mine", "nut"), tmp_path / "run"
    args = parse(particles, monkeypatch, "--folders", mine, run, "--steps", 3)
    assert (args.data, args.run, args.folders, args.steps) == (None, run, mine, 3)
    args = parse(particles, monkeypatch, "data", run, "--steps", 3)  # again into the same run
    assert (args.data, args.folders) == (Path("data"), None)
    for words in ([run], ["data", run, "--folders", mine]):
        with pytest.raises(SystemExit):
            parse(particles, monkeypatch, *words)
        assert "give either DATA or --folders DIR, and RUN" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="mine holds other files"):
        parse(particles, monkeypatch, "--folders", mine, mine)


@pytest.mark.parametrize(
    ("names", "chosen", "held_out"),
    [("ab", None, "b"), ("abcd", None, "d"), ("abcdefgh", None, "dh"), ("abc", ["a", "b"], "ab")],
)
def test_own_folders(
    particles: ModuleType, tmp_path: Path, names: str, chosen: list[str] | None, held_out: str
) -> None:
    args = Namespace(folders=own(tmp_path, *names), held_out=chosen)
    train, test = particles.open_pictures(args)
    assert "".join(test.classes) == held_out
    assert {*train.classes, *test.classes} == set(names)
    assert not {*train.classes} & {*test.classes}


def test_one_class_is_not_enough(particles: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has only the held-out classes: nut"):
        particles.open_pictures(Namespace(folders=own(tmp_path, "nut"), held_out=None))
