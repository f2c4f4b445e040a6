"""The demo, as visitors use it: in a real browser, against a real server."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make
from PIL import Image

from hdmnet import Box, HDMNet, SupportSet
from hdmnet.images import load_mask

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]
pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

from hdmnet.demo import events as demo_events  # noqa: E402
from hdmnet.demo import page as demo_page  # noqa: E402
from hdmnet.demo import serving  # noqa: E402
from hdmnet.demo.events import Events  # noqa: E402
from hdmnet.demo.visit import Choice, Visit  # noqa: E402

DATA = Path(__file__).parents[1] / "examples" / "data"
FISH, PERSON = DATA / "fish", DATA / "person"
ANSWERS = 120_000  # milliseconds that a busy machine may take
CANVAS = ".hdmnet-canvas canvas"


@pytest.fixture(scope="module")
def model(small_lite0: Path) -> HDMNet:
    return HDMNet.from_pretrained(small_lite0).fused()


@pytest.fixture(scope="module")
def started(model: HDMNet, small_lite0: Path) -> Iterator[tuple[str, Events]]:
    """A server, and what it knows."""
    made: list[Events] = []

    class Watched(Events):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_page, "Events", Watched)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with serving(model, str(small_lite0)) as address:
            yield address, made[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and not os.environ.get("CI"):
        pytest.skip("there is no Chromium: apt install chromium")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=options)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, started: tuple[str, Events]) -> Iterator[Callable[..., "Visitor"]]:
    """Open the page. Each call is another visitor."""
    contexts = []

    def opened(**options: Any) -> Visitor:
        options.setdefault("viewport", {"width": 1280, "height": 1000})
        contexts.append(browser.new_context(accept_downloads=True, **options))
        return Visitor(contexts[-1].new_page(), started[0])

    yield opened
    for context in contexts:
        context.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for at most as long as uploads are kept, and a little more."""
    limit = time.monotonic() + 100
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.1)


class Visitor:
    """A person at the page."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self._program = ""
        page.set_default_timeout(ANSWERS)
        page.goto(address)
        page.wait_for_selector("#supports")

    def show(self, *files: Path) -> None:
        """Upload supports."""
        before = self.picture()
        self._upload("#supports", files)
        self._wait_for_another(before)

    def picture(self) -> str:
        """Return what the canvas shows, as a data URL. Empty: it shows nothing."""
        found = self.page.evaluate(
            f"(() => {{ const c = document.querySelector('{CANVAS}');"
            " return c && c.style.display === 'block' ? c.toDataURL() : ''; })()"
        )
        return str(found)

    def use(self, tool: str) -> None:
        """Choose how to mark."""
        self.page.locator("#tool").get_by_text(tool, exact=True).click()
        self.page.wait_for_selector(f'[data-tool="{demo_events.TOOLS[tool]}"] canvas')

    def stroke(self, *places: tuple[float, float]) -> None:
        """Move the mouse over the picture: shares of its width and height."""
        self.page.locator(CANVAS).scroll_into_view_if_needed()
        frame = self.page.locator(CANVAS).bounding_box()
        points = [
            (frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in places
        ]
        with self.new_view():
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point, steps=4)
            self.page.mouse.up()

    @contextmanager
    def new_view(self) -> Iterator[None]:
        """Wait until the server has answered what is done inside, which changes "Show it"."""
        before = self.page.get_attribute("[data-revision]", "data-revision")
        yield
        changed = f'[data-revision]:not([data-revision="{before}"]) canvas'
        self.page.wait_for_selector(changed, state="attached")

    def give_mask(self, file: Path) -> None:
        """Upload the mask of the picture."""
        before = self.picture()
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#mask")
        chooser.value.set_files(file)
        self._wait_for_another(before)

    def name_class(self, name: str) -> None:
        """Type the name of a class."""
        box = self.page.locator("#class input")
        box.fill(name)
        with self.new_view():
            box.press("Enter")

    def search(self, *files: Path) -> None:
        """Upload pictures to segment."""
        before = self.page.locator("#listed code").count()
        self._upload("#queries", files)
        self.page.locator("#listed code").nth(before + len(files) - 1).wait_for()

    def segment(self, count: int) -> list[str]:
        """Segment, and return the captions."""
        self.page.click("#segment")
        self.page.wait_for_function(
            "count => document.querySelectorAll('#answers figure').length === count", arg=count
        )
        return list(self.page.locator("#answers figcaption").all_inner_texts())

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def download(self, button: str) -> dict[str, bytes]:
        """Make files, and download each."""
        self.open_tab("Files")
        self.page.click(button)
        self.page.wait_for_selector("#files a")
        files = {}
        for link in self.page.locator("#files a").all():
            with self.page.expect_download() as download:
                link.click()
            files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        return files

    def python(self) -> str:
        """Return the program that the page writes. It is another one than before."""
        self.open_tab("Python")
        self.page.click("#python")
        limit, program, before = time.monotonic() + ANSWERS / 1000, "", ""
        while program in ("", self._program) or program != before:  # all of it, on a slow machine
            assert time.monotonic() < limit, "there is no new program"
            before = program
            self.page.wait_for_timeout(200)
            lines = self.page.locator("#code .cm-line").all_inner_texts()
            program = "\n".join(line.replace("\xa0", " ") for line in lines).strip()
        self._program = program
        return program

    def wait_for_message(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def _upload(self, where: str, files: tuple[Path, ...]) -> None:
        self.page.set_input_files(f"{where} input[type=file]", list(files))

    def _wait_for_another(self, picture: str) -> None:
        limit = time.monotonic() + ANSWERS / 1000
        while self.picture() in ("", picture):
            assert time.monotonic() < limit, "the canvas did not change"
            self.page.wait_for_timeout(100)


def unzip(content: bytes) -> dict[str, Image.Image]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}
        return {name: image.copy() for name, image in files.items()}


def same(first: Image.Image, mask: torch.Tensor) -> float:
    """Return the share of pixels that agree."""
    return float(((np.array(first) > 0) == mask.numpy()).mean())


def test_a_visit_gives_what_predict_gives(
    visit: Callable[..., Visitor], model: HDMNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.give_mask(FISH / "support_1.png")
    visitor.search(FISH / "query_1.jpg", FISH / "query_2.jpg")
    captions = visitor.segment(2)

    expected = model.predict(
        [FISH / "query_1.jpg", FISH / "query_2.jpg"], FISH / "support_1.jpg", FISH / "support_1.png"
    )
    for caption, name, result in zip(captions, ("query_1", "query_2"), expected, strict=True):
        assert name in caption
        assert f"presence {result.presence:.2f}" in caption
        assert f"{result.mask.float().mean():.0%}" in caption

    files = visitor.download("#pack")
    assert set(files) == {"masks.zip", "coco.json", "object.safetensors"}
    masks = unzip(files["masks.zip"])
    for name, result in zip(("query_1", "query_2"), expected, strict=True):
        assert same(masks[f"answers/{name}.jpg.png"], result.mask) == 1
    given = load_mask(FISH / "support_1.png") == 1
    assert same(masks["annotations/object/support_1.jpg.png"], given) == 1

    coco = json.loads(files["coco.json"])
    assert [image["file_name"] for image in coco["images"]] == ["query_1.jpg", "query_2.jpg"]
    areas = [annotation["area"] for annotation in coco["annotations"]]
    assert areas == [int(result.mask.sum()) for result in expected]

    (tmp_path / "fish.safetensors").write_bytes(files["object.safetensors"])
    loaded = SupportSet.load(tmp_path / "fish.safetensors")
    again = model.predict(FISH / "query_1.jpg", loaded)
    assert torch.equal(again.mask, expected[0].mask)

    for path in FISH.glob("*.jpg"):
        shutil.copy(path, tmp_path)
    zipfile.ZipFile(io.BytesIO(files["masks.zip"])).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(visitor.python(), found)
    assert torch.equal(found["mask"], expected[1].mask)


def test_the_onnx_graph_gives_the_same_mask(
    visit: Callable[..., Visitor], model: HDMNet, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.give_mask(FISH / "support_1.png")
    graph = visitor.download("#bake")["object.onnx"]
    image = np.array(Image.open(FISH / "query_1.jpg").convert("RGB"))
    (probability,) = runtime.InferenceSession(graph).run(None, {"image": image})
    expected = model.predict(image, FISH / "support_1.jpg", FISH / "support_1.png")
    assert ((probability > 0.5) == expected.mask.numpy()).mean() > 0.999


def test_paint_and_erase(visit: Callable[..., Visitor], model: HDMNet) -> None:
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.use("Paint")
    visitor.stroke((0.2, 0.5), (0.8, 0.5))
    visitor.use("Erase")
    visitor.stroke((0.7, 0.3), (0.7, 0.7))
    visitor.search(FISH / "query_2.jpg")
    visitor.segment(1)
    masks = unzip(visitor.download("#pack")["masks.zip"])
    mask = np.array(masks["annotations/object/support_1.jpg.png"])
    expected = model.predict(FISH / "query_2.jpg", FISH / "support_1.jpg", mask).mask
    assert same(masks["answers/query_2.jpg.png"], expected) == 1
    height, width = mask.shape

    def at(x: float, y: float) -> int:
        return int(mask[int(y * height), int(x * width)])

    assert [at(0.3, 0.5), at(0.5, 0.5), at(0.78, 0.5)] == [255, 255, 255]
    assert [at(0.7, 0.5), at(0.5, 0.1), at(0.1, 0.5)] == [0, 0, 0]


def test_a_box_and_points(visit: Callable[..., Visitor], model: HDMNet) -> None:
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.stroke((0.05, 0.15), (0.95, 0.85))
    program = visitor.python()
    found = re.search(r"Box\(x0=([\d.]+), y0=([\d.]+), x1=([\d.]+), y1=([\d.]+)\)", program)
    assert found, program
    box = [float(value) for value in found.groups()]
    with Image.open(FISH / "support_1.jpg") as image:
        width, height = image.size
    expected = [0.05 * width, 0.15 * height, 0.95 * width, 0.85 * height]
    assert box == pytest.approx(expected, abs=2)

    visitor.search(FISH / "query_1.jpg")
    visitor.page.locator("#twice input").check()
    visitor.segment(1)
    answer = unzip(visitor.download("#pack")["masks.zip"])["answers/query_1.jpg.png"]
    asked = (FISH / "query_1.jpg", FISH / "support_1.jpg", Box(*box))
    once, twice = (model.predict(*asked, self_support=x) for x in (False, True))
    assert same(answer, twice.mask) == 1
    assert not torch.equal(once.mask, twice.mask)
    assert "masks, self_support=True)" in visitor.python()

    visitor.use("Point beside it")
    visitor.page.locator(CANVAS).click(position={"x": 5, "y": 5})
    visitor.wait_for_message("first mark a point on the object")
    visitor.use("Point on it")
    visitor.stroke((0.5, 0.5))
    visitor.use("Point beside it")
    visitor.stroke((0.1, 0.95))
    assert "Points(positive=((" in visitor.python()


def test_several_classes_and_a_negative(visit: Callable[..., Visitor], model: HDMNet) -> None:
    visitor = visit()
    shown = {"fish": FISH, "person": PERSON}
    for name, folder in shown.items():
        visitor.name_class(name)
        visitor.show(folder / "support_1.jpg")
        visitor.give_mask(folder / "support_1.png")
    visitor.name_class("fish")
    visitor.show(PERSON / "support_2.jpg")
    with visitor.new_view():
        visitor.page.locator("#negative input").check()
    visitor.search(PERSON / "query_1.jpg")
    (caption,) = visitor.segment(1)
    assert "fish: presence" in caption
    assert "person: presence" in caption
    answer = unzip(visitor.download("#pack")["masks.zip"])["answers/query_1.jpg.png"]
    result = model.predict(
        PERSON / "query_1.jpg",
        {name: folder / "support_1.jpg" for name, folder in shown.items()},
        {name: folder / "support_1.png" for name, folder in shown.items()},
        negatives={"fish": [PERSON / "support_2.jpg"]},
    )
    assert np.array_equal(np.array(answer), result.labels.numpy())
    assert "negatives=negatives" in visitor.python()


@pytest.mark.parametrize("names", [("fish", "person"), ("fish",)])
def test_the_rule_of_the_model(names: tuple[str, ...]) -> None:
    """One class and several are lowered, as by `predict`."""
    rule = {"scale": 0.0, "bias": 0.0, "center": [], "threshold": 0.9}
    model = make(base_classes=0, presence=rule)  # every presence is 0.5
    visit = Visit(model)
    given = {name: visit.add_support(name, DATA / name / "support_1.jpg") for name in names}
    for support in given.values():
        support.mask[100:, 100:] = True
    query = visit.add_query(FISH / "query_1.jpg")
    list(visit.segment())
    ((_, shown),) = visit.chosen(Choice())
    assert (shown.probability < visit.answers[0].probability).all()
    images = {name: support.image for name, support in given.items()}
    masks = {name: support.mask for name, support in given.items()}
    expected = model.predict(query.image, images, masks)
    torch.testing.assert_close(shown.probability, expected.probability)


def test_files_of_a_visit(model: HDMNet, tmp_path: Path) -> None:
    """No painted mask is lost, and a moved threshold changes no score."""
    visit = Visit(model)
    shutil.copy(FISH / "support_1.jpg", tmp_path / "fish.jpg")
    shutil.copy(FISH / "support_1.jpg", tmp_path / "fish.png")
    for name in ("fish.jpg", "fish.png"):
        visit.add_support("fish", tmp_path / name).load_mask(FISH / "support_1.png")
    visit.add_query(FISH / "query_1.jpg")
    list(visit.segment())
    assert len(visit.painted()) == 2
    for threshold in (0.5, 0.9):
        coco = json.loads(visit.answer_files(Choice(threshold))["coco.json"])
        probability = visit.answers[0]["fish"].probability
        expected = probability[probability > threshold].mean().item()
        assert coco["annotations"][0]["score"] == pytest.approx(expected, abs=1e-5)


def test_a_support_without_a_mask_keeps_the_answers(model: HDMNet) -> None:
    visit = Visit(model)
    visit.add_support("fish", FISH / "support_1.jpg").load_mask(FISH / "support_1.png")
    visit.add_query(FISH / "query_1.jpg")
    list(visit.segment())
    visit.add_support("fish", PERSON / "support_1.jpg")
    with pytest.raises(ValueError, match="nothing is marked"):
        list(visit.segment())
    assert len(visit.answers) == 1


def test_uploads_are_deleted_but_not_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_events, "KEPT", 0.1)
    done, same = tmp_path / "hash" / "a.jpg", tmp_path / "hash" / "b.jpg"
    running, left = tmp_path / "tmp1", tmp_path / "tmp2"
    done.parent.mkdir()
    for path in (done, same, running, left):
        path.touch()
    os.utime(left, (1, 1))
    soon = time.time() + 100
    os.utime(running, (soon, soon))
    demo_events.discard(str(done))
    assert done.exists()
    wait_until(lambda: not done.exists() and not left.exists())
    assert same.exists()
    assert running.exists()
    os.utime(same, (soon, soon))  # it came again
    demo_events._delete([same])
    assert same.exists()
    os.utime(same, (1, 1))
    demo_events._delete([same])
    assert list(tmp_path.iterdir()) == [running]


def test_one_picture_twice(visit: Callable[..., "Visitor"], tmp_path: Path) -> None:
    """Gradio keeps both in one folder, also those of two visitors."""
    again = shutil.copy(FISH / "query_1.jpg", tmp_path / "copy.jpg")
    for _ in range(2):
        visitor = visit()
        visitor.search(FISH / "query_1.jpg", Path(again))
        visitor.page.wait_for_function(
            "() => document.body.innerText.includes('query_1.jpg, copy.jpg')"
        )


def test_sliders_after_looking_twice(model: HDMNet) -> None:
    """They give what `predict` gives with the same threshold."""
    visit = Visit(model)
    support = visit.add_support("fish", FISH / "support_1.jpg")
    support.load_mask(FISH / "support_1.png")
    visit.add_query(FISH / "query_1.jpg")
    list(visit.segment(self_support=True))
    for threshold in (None, 0.0, 1.0):
        ((_, answer),) = visit.chosen(Choice(presence=threshold))
        expected = model.predict(
            FISH / "query_1.jpg",
            FISH / "support_1.jpg",
            FISH / "support_1.png",
            presence_threshold=threshold,
            self_support=True,
        )
        assert torch.equal(answer["fish"].mask, expected.mask)


def test_sliders_compute_nothing_again(
    visit: Callable[..., Visitor], model: HDMNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.give_mask(FISH / "support_1.png")
    visitor.search(FISH / "query_2.jpg")
    (before,) = visitor.segment(1)

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(HDMNet, "match_sets", fails)
    number = visitor.page.locator("#threshold input[type=number]")
    number.fill("0.9")
    number.press("Enter")
    number.blur()
    visitor.page.wait_for_function(
        "before => document.querySelector('#answers figcaption').innerText !== before", arg=before
    )
    (after,) = visitor.page.locator("#answers figcaption").all_inner_texts()
    share = [int(re.search(r"(\d+)%", caption)[1]) for caption in (before, after)]  # type: ignore[index]
    assert share[1] < share[0]
    visitor.page.locator("#rule input").uncheck()
    visitor.page.locator("#presence").wait_for()
    number = visitor.page.locator("#presence input[type=number]")
    number.fill("1")
    number.press("Enter")
    number.blur()
    visitor.page.wait_for_function(
        "() => /\\b0%/.test(document.querySelector('#answers figcaption').innerText)"
    )


def test_classes_are_encoded_once(model: HDMNet, monkeypatch: pytest.MonkeyPatch) -> None:
    visit, encode, calls = Visit(model), HDMNet.encode_supports, []

    def count(*arguments: Any) -> SupportSet:
        calls.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(HDMNet, "encode_supports", count)
    support = visit.add_support("fish", FISH / "support_1.jpg")
    support.load_mask(FISH / "support_1.png")
    visit.add_query(FISH / "query_1.jpg")
    for _ in range(2):
        list(visit.segment())
        visit.class_files()
    assert len(calls) == 1
    support.clear()
    support.load_mask(FISH / "support_1.png")
    visit.changed("fish")
    list(visit.segment())
    assert len(calls) == 2


def test_ratings_and_reasons(visit: Callable[..., Visitor], model: HDMNet, tmp_path: Path) -> None:
    visitor = visit()
    for i in (1, 2, 3):
        visitor.show(PERSON / f"support_{i}.jpg")
        visitor.give_mask(PERSON / f"support_{i}.png")
    visitor.open_tab("Rate")
    visitor.page.click("#rate")
    visitor.page.wait_for_function(
        "() => document.querySelector('#ratings').innerText.includes('support_3.jpg')"
    )
    table = visitor.page.locator("#ratings").inner_text()
    paths = [PERSON / f"support_{i}.jpg" for i in (1, 2, 3)]
    ratings = model.rate_supports(paths, [path.with_suffix(".png") for path in paths])
    expected = [f"{paths[r.index].name} {round(r.agreement, 2)}" for r in ratings]
    shown = [" ".join(row.split()) for row in re.findall(r"support_\d\.jpg\s+[\d.]+", table)]
    assert shown == expected
    visitor.search(PERSON / "query_1.jpg")
    visitor.segment(1)
    visitor.open_tab("Why")
    visitor.page.click("#explain")
    visitor.page.wait_for_selector("#why img")
    width = visitor.page.evaluate("document.querySelector('#why img').naturalWidth")
    assert width > 600


def test_two_visitors_see_their_own(
    browser: Any, started: tuple[str, Events], tmp_path: Path
) -> None:
    address, events = started
    limit = time.monotonic() + 60
    while len(events) and time.monotonic() < limit:
        time.sleep(0.2)  # visitors of other tests are leaving
    contexts = [browser.new_context(viewport={"width": 1280, "height": 1000}) for _ in range(2)]
    visitors = [Visitor(context.new_page(), address) for context in contexts]
    for visitor, folder in zip(visitors, (FISH, PERSON), strict=True):
        visitor.show(folder / "support_1.jpg")
        visitor.give_mask(folder / "support_1.png")
        visitor.search(folder / "query_2.jpg", folder / "query_1.jpg")
    for visitor in visitors:  # both wait at the same time
        visitor.page.click("#segment")
    for visitor in visitors:
        visitor.page.wait_for_function(
            "() => document.querySelectorAll('#answers figure').length === 2"
        )
    assert len(events) == 2
    sources = [
        visitor.page.locator("#answers img").first.get_attribute("src") for visitor in visitors
    ]
    assert sources[0] != sources[1]
    assert all(source.startswith("data:") for source in sources)
    for context in contexts:
        context.close()
    wait_until(lambda: not len(events))  # the visits are forgotten
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    wait_until(lambda: not [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size])


def test_on_a_phone(visit: Callable[..., Visitor]) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visitor.show(FISH / "support_1.jpg")
    visitor.use("Point on it")
    before = visitor.picture()
    canvas = visitor.page.locator(CANVAS)
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    visitor.page.touchscreen.tap(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    visitor._wait_for_another(before)
    visitor.search(FISH / "query_1.jpg")
    visitor.segment(1)
    wide = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390


def test_a_picture_of_40_megapixels(
    visit: Callable[..., Visitor], model: HDMNet, tmp_path: Path
) -> None:
    with Image.open(FISH / "query_1.jpg") as image:
        image.resize((7300, 5480)).save(tmp_path / "large.jpg", quality=80)
    visitor = visit()
    visitor.show(FISH / "support_1.jpg")
    visitor.give_mask(FISH / "support_1.png")
    visitor.search(tmp_path / "large.jpg")
    visitor.segment(1)
    answer = unzip(visitor.download("#pack")["masks.zip"])["answers/large.jpg.png"]
    assert answer.size == (7300, 5480)
    expected = model.predict(tmp_path / "large.jpg", FISH / "support_1.jpg", FISH / "support_1.png")
    assert same(answer, expected.mask) > 0.99  # the page has reduced it


def test_what_is_no_image(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("milk, bread")
    with open(tmp_path / "huge.jpg", "wb") as huge:
        huge.truncate(70 * 2**20)
    name = "<img src=x onerror=document.title='bad'>.jpg"
    shutil.copy(FISH / "query_2.jpg", tmp_path / name)
    visitor = visit()
    visitor.page.click("#segment")
    visitor.wait_for_message("there is no picture to segment yet")
    with visitor.new_view():
        visitor._upload("#supports", (tmp_path / "notes.jpg",))
    visitor.wait_for_message("notes.jpg cannot be read as an image")
    visitor._upload("#supports", (tmp_path / "huge.jpg",))
    visitor.wait_for_message("maximum allowed size")
    visitor.show(FISH / "support_1.jpg")
    visitor.search(FISH / "query_1.jpg")
    visitor.page.click("#segment")
    visitor.wait_for_message("nothing is marked in support_1.jpg")
    visitor.give_mask(FISH / "support_1.png")
    visitor.search(tmp_path / name)
    assert len(visitor.segment(2)) == 2
    assert visitor.page.title() == "hdmnet"


def test_the_command_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "hdmnet", "demo"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        assert any("open http://127.0.0.1:" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert not list(tmp_path.glob("hdmnet-demo-*"))
