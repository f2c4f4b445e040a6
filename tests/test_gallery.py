"""The gallery: its page, its photographs with their licenses, and the script for its strips."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_readme import snippets

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT / "examples" / "gallery"
STRIPS = ROOT / "docs" / "gallery"
SCRIPT = ROOT / "examples" / "gallery.py"
PAGE = "docs/gallery.md"


def run_snippets(code: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for number, snippet in enumerate(code):
        exec(compile(snippet, f"snippet {number} of {PAGE}", "exec"), names)
    return names


def draw(out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as if it was started
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_first_snippets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_snippets(snippets(PAGE)[:2], monkeypatch)
    assert names["crocodile"].mask.float().mean() > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("small_bundled")
def test_all_snippets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_snippets(snippets(PAGE), monkeypatch)
    assert names["no_road"].presence < names["other_part"].presence


def test_a_wood_without_a_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says, with images of the size that people use."""
    first, *others = snippets(PAGE)
    roads = next(code for code in others if "no_road" in code)
    names = run_snippets([first, roads], monkeypatch)
    assert names["no_road"].mask.float().mean() == pytest.approx(0.01, abs=0.005)
    assert not names["no_road"].emptied_below(0.3).mask.any()


def test_the_script_draws_a_strip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, monkeypatch, "--strips", "cups")
    assert [path.name for path in tmp_path.iterdir()] == ["cups.jpg"]
    with Image.open(tmp_path / "cups.jpg") as drawn, Image.open(STRIPS / "cups.jpg") as committed:
        assert drawn.size == committed.size


@pytest.mark.slow
@pytest.mark.usefixtures("small_bundled")
def test_the_script_draws_all_strips_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in STRIPS.iterdir()}


def test_the_page_shows_every_strip() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]{20,}\]\(gallery/([^)]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in STRIPS.iterdir())
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 120
    assert f"{len(list(PHOTOGRAPHS.glob('*/query_*.jpg')))} queries in all" in page


def test_every_photograph_has_a_row_with_its_license() -> None:
    table = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    listed = []
    for row in re.findall(r"^\| `.*\|$", table, flags=re.MULTILINE):
        cells = row.strip("|").split(" | ")
        assert len(cells) == 5, row
        assert re.search(r"(CC0|CC-BY(-SA)?-\d\.\d|public domain|MIT|BSD-3-Clause) \[\d+\]", row)
        files = re.findall(r"`([^`]+)`", cells[0])
        task = files[0].split("/")[0]
        credit = f"{cells[2]} ({cells[4].split(' [')[0]})"
        assert re.search(rf"gallery/{task}[^)]*\)\n\n\*Photographs: .*{re.escape(credit)}", page)
        listed += [f"{task}/{file.split('/')[-1]}" for file in files]
    photographs = sorted(str(p.relative_to(PHOTOGRAPHS)) for p in PHOTOGRAPHS.glob("*/*.jpg"))
    assert sorted(listed) == photographs


def test_pictures_are_small() -> None:
    files = [*PHOTOGRAPHS.glob("*/*.jpg"), *PHOTOGRAPHS.glob("*/*.png")]
    for file in files:
        with Image.open(file) as image:
            assert max(image.size) <= 480, file
    assert sum(file.stat().st_size for file in files) < 1_200_000
    assert sum(file.stat().st_size for file in STRIPS.iterdir()) < 900_000
