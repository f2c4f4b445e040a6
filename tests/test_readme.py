"""The snippets and links of the README and of pages in docs."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/backbones.md",
    "docs/many-images.md",
    "docs/predict.md",
    "docs/annotations.md",
    "docs/supports.md",
    "docs/classes.md",
    "docs/absent.md",
    "docs/quality.md",
    "docs/explain.md",
    "docs/own-data.md",
    "docs/own-network.md",
    "docs/speed.md",
    "docs/evaluation.md",
    "docs/fine-tuning.md",
    "docs/parity.md",
)
WHOLE_PAGES = ("README.md", "docs/index.md", "docs/quickstart.md")
"""The first ones that people try: their images have the size that people use."""
DATA_PAGES = ("docs/backbones.md", "docs/evaluation.md", "docs/fine-tuning.md", "docs/own-data.md")
"""The pages whose snippets read data sets, and need the extra for it."""
CARDS = [str(card.relative_to(ROOT)) for card in ROOT.glob("hdmnet/weights/*/README.md")]


def snippets(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, i) for page in PAGES for i in range(len(snippets(page)))],
)
def test_snippet_runs(
    page: str,
    number: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if page not in WHOLE_PAGES:
        request.getfixturevalue("small_bundled")
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    if page in DATA_PAGES:
        pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")
        import trees

        trees.mask_folders(tmp_path / "my_data", {"nut": (5, 5, 25, 25), "bolt": (30, 8, 60, 40)})
        dogs = {name: trees.boxes_label((60, 80), {(5, 5, 55, 50): 12}) for name in "ab"}
        trees.voc(tmp_path, dogs, split="trainaug")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(page)[number], f"snippet {number} of {page}", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", *CARDS])
def test_no_placeholder_is_left(page: str) -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_extras_are_installed_from_a_clone(page: str) -> None:
    """No release has them yet."""
    assert "hdmnet[" not in (ROOT / page).read_text(encoding="utf-8")


def test_the_notebook_is_the_script(tmp_path: Path) -> None:
    """`make docs` executes the notebook. Its script is what people read and change."""
    jupytext = pytest.importorskip("jupytext", reason="needs hdmnet[docs]")
    notebook = jupytext.read(ROOT / "docs" / "tutorial.ipynb")
    script = jupytext.read(ROOT / "docs" / "tutorial.py")
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in script.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 120
    assert len(snippets("README.md")) == 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()


def test_every_public_name_is_documented() -> None:
    import hdmnet

    undocumented = [
        name
        for name in hdmnet.__all__
        if name != "convert" and not (getattr(hdmnet, name).__doc__ or "").strip()
    ]
    assert not undocumented


def test_the_reference_has_every_public_name() -> None:
    import hdmnet
    from hdmnet import data

    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md"))
    listed = set(re.findall(r"auto(?:class|function):: (\w+)$", pages, flags=re.MULTILINE))
    assert {*hdmnet.__all__, *hdmnet.convert.__all__} - listed == {"convert"} - listed
    for module in ("hdmnet.data", "hdmnet.metrics", "hdmnet.onnx"):
        assert f"automodule:: {module}\n" in pages
    assert data.__all__  # what automodule lists


def test_versions_agree() -> None:
    import hdmnet

    version = re.escape(hdmnet.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert first
    assert first[1] == hdmnet.__version__
