"""examples/label_with_ray.py, with real Ray actors on this machine."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from hdmnet import HDMNet, SupportSet
from hdmnet._files import write_whole
from hdmnet.images import load_mask

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "label_with_ray.py"
FISH = ROOT / "examples" / "data" / "fish"
ODD_NAMES = ["ünïcode/魚 1.jpg", "sub/sub.sub/fish.JPEG", "twin.jpg", "twin.png", "line\nbreak.jpg"]
if sys.platform == "linux":
    ODD_NAMES.append(os.fsdecode(b"no text \xff.jpg"))
GOOD = [f"{i:02}.jpg" for i in range(26)] + ODD_NAMES
BAD = ["cut short.jpg", "sub/words.jpg", "empty.png"]
SUMMARY = re.compile(
    r"(\d+) labelled in \d+ s \(\d+\.\d a second\), (\d+) unreadable, (\d+) skipped"
)


@dataclass
class Collection:
    """A folder of images, and the command that labels it."""

    images: Path
    supports: Path
    out: Path
    env: dict[str, str]

    @property
    def command(self) -> list[str | Path]:
        options = ["--actors", "2", "--batch-size", "4"]
        return [sys.executable, SCRIPT, self.images, self.supports, self.out, *options]

    def run(self) -> tuple[int, ...]:
        """Run the command. Return how many images it labelled, could not read and skipped."""
        done = subprocess.run(
            self.command, env=self.env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr
        return summary(done.stderr)

    def masks(self) -> dict[str, int]:
        """Return names and times of all files in `out`, except the list of errors."""
        files = (path for path in self.out.rglob("*") if path.is_file())
        times = {str(path.relative_to(self.out)): path.stat().st_mtime_ns for path in files}
        times.pop("errors.jsonl", None)
        return times

    def errors(self) -> list[str]:
        lines = (self.out / "errors.jsonl").read_text().splitlines()
        assert all(json.loads(line)["error"] for line in lines)
        return sorted(json.loads(line)["image"] for line in lines)


def summary(log: str) -> tuple[int, ...]:
    (counts,) = SUMMARY.findall(log)
    return tuple(map(int, counts))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    images = tmp_path_factory.mktemp("ray") / "images"
    photograph = Image.open(FISH / "query_1.jpg").convert("RGB")
    for number, name in enumerate(GOOD):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        width, height = photograph.size
        left = number * width // (2 * len(GOOD))
        cut = photograph.crop((left, 0, left + width // 2, height))
        cut.resize((120 + number, 100)).save(images / name)
    whole = (images / "00.jpg").read_bytes()
    for name, content in zip(BAD, [whole[: len(whole) // 2], b"words", b""], strict=True):
        (images / name).write_bytes(content)
    (images / "notes.txt").write_text("not an image, by content and by suffix")
    supports = images.parent / "fish.safetensors"
    model = HDMNet.from_pretrained("hdmnet-lite0")
    model.encode_supports(FISH / "support_1.jpg", FISH / "support_1.png").save(supports)
    # Ray needs a short path for its sockets, and it writes into the home folder.
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:
        env = os.environ | {"RAY_TMPDIR": short, "HOME": short}
        env.pop("RAY_ADDRESS", None)
        yield Collection(images, supports, images / "masks", env)


@pytest.fixture(scope="module")
def labelled(collection: Collection) -> Collection:
    """A collection that two actors labelled. One of them was killed during the work."""
    pytest.importorskip("ray.data")
    import psutil  # installed with Ray

    def actors() -> list[psutil.Process]:
        found = []
        for process in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "Labeller" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def made() -> int:
        return len(list(collection.out.rglob("*.png")))

    log = collection.images.parent / "log.txt"
    with open(log, "w") as file:
        driver = subprocess.Popen(
            collection.command, env=collection.env, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while made() < 4 or len(actors()) < 2:
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        busiest = max(actors(), key=lambda process: process.cpu_times().user)
        busiest.kill()
        busiest.wait(10)
        assert made() < len(GOOD)
        assert driver.wait(180) == 0, log.read_text()
    finally:
        driver.terminate()
        driver.wait(30)
    assert summary(log.read_text()) == (len(GOOD), len(BAD), 0)
    return collection


def test_every_image_has_one_mask_though_an_actor_was_killed(labelled: Collection) -> None:
    assert sorted(labelled.masks()) == sorted(f"{name}.png" for name in GOOD)
    assert labelled.errors() == sorted(BAD)


def test_masks_equal_predict(labelled: Collection) -> None:
    model = HDMNet.from_pretrained("hdmnet-lite0")
    supports = SupportSet.load(labelled.supports)
    for name in [*GOOD[::12], *ODD_NAMES[:2]]:
        expected = model.predict(labelled.images / name, supports).probability
        height, width = expected.shape
        mask = load_mask(labelled.out / f"{name}.png", (height, width)) == 1
        assert mask.any()
        assert ((mask == (expected > 0.5)) | ((expected - 0.5).abs() < 1e-4)).all()


def test_another_run_makes_only_what_is_missing(labelled: Collection) -> None:
    before, skipped = labelled.masks(), len(GOOD) + len(BAD)
    assert labelled.run() == (0, 0, skipped)
    assert labelled.masks() == before

    lost = f"{ODD_NAMES[0]}.png"
    (labelled.out / lost).unlink()
    half: list[Path] = []
    write_whole(labelled.out / lost, lambda path: half.append(path) or path.touch())
    (labelled.out / lost).unlink()
    half[0].touch()  # what an actor leaves that dies while it writes
    assert labelled.run() == (1, 0, skipped - 1)
    after = labelled.masks()
    assert after.pop(lost) > before.pop(lost)
    assert after == before
    assert labelled.errors() == sorted(BAD)


def test_supports_of_another_model_are_refused(
    collection: Collection,
    fresh: HDMNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray.data")
    fresh.save_pretrained(tmp_path)
    arguments = [*collection.command[1:], "--model", tmp_path]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "was encoded by another model" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[ray\]'"):
        runpy.run_path(str(SCRIPT))
