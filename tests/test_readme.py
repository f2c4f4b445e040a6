"""The snippets and links of the README and of pages in docs."""

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import conftest
import pytest

from hdmnet import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = [str(card.relative_to(ROOT)) for card in ROOT.glob("hdmnet/weights/*/README.md")]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")), *CARDS]
ELSEWHERE = {
    "docs/gallery.md": "test_gallery.py",
    "docs/integrations.md": "test_integrations.py",  # needs FiftyOne
    "docs/speed.md, ONNX": "test_onnx.py",  # takes minutes
}
"""Who runs the snippets that are not run here."""
WHOLE_PAGES = ("README.md", "docs/index.md", "docs/quickstart.md")
"""The first ones that people try: their images have the size that people use."""
DATA_PAGES = ("docs/backbones.md", "docs/evaluation.md", "docs/fine-tuning.md", "docs/own-data.md")
"""The pages whose snippets read data sets, and need the extra for it."""


def snippets(page: str, language: str = "python") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def snippets_to_run() -> Iterator[tuple[str, int]]:
    for page in PAGES:
        for i, snippet in enumerate(snippets(page)):
            kind = ", ONNX" if "hdmnet.onnx" in snippet else ""
            if page + kind not in ELSEWHERE:
                yield page, i


def test_each_snippet_is_run() -> None:
    """None has another mark than the tests look for."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        marks = set(re.findall(r"^ *```(\S+)", text, flags=re.MULTILINE))
        assert marks <= {"python", "sh", "bibtex", "{toctree}"}, page
    for name in ELSEWHERE.values():
        assert "snippets(" in (ROOT / "tests" / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("page", "number"), [*snippets_to_run()])
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
    known: dict[str, object] = {}
    if page == "docs/checkpoints.md":
        conftest.make().save_pretrained("out")
    if page in CARDS:
        fish = Path("examples/data/fish")
        known = {"query": fish / "query_1.jpg"}
        known |= {"supports": fish / "support_1.jpg", "masks": fish / "support_1.png"}
    exec(compile(snippets(page)[number], f"snippet {number} of {page}", "exec"), known)


COMMANDS = [*PAGES, "CONTRIBUTING.md", "examples/train_lite0/README.md"]
OTHERS = {"cd", "cvat-cli", "do", "done", "export", "for", "make", "pip", "pre-commit", "pytest"}
"""Programs of others, and words of the shell."""


@pytest.mark.parametrize("page", [page for page in COMMANDS if snippets(page, "sh")])
def test_commands_have_these_options(page: str) -> None:
    """`test_cli.py` runs those of the command line; many others need data sets and hours."""
    for block in snippets(page, "sh"):
        block = re.sub(r"<<'END'.*?^END$", "", block.replace("\\\n", " "), flags=re.S | re.M)
        for line in re.split(r"\n|&&", block):
            words = shlex.split(line, comments=True)
            if not words or words[0] in OTHERS or "=" in words[0] or words[0] == ".":
                continue
            if words[0] == "hdmnet":
                command = cli.cli.commands[words[1]]
                known = {name for option in command.params for name in option.opts}
            else:
                assert words[0] == "python", line
                known = options_of_script(words[1:], (ROOT / page).parent)
            options = {word.split("=")[0] for word in words if re.match("--[a-z]", word)}
            assert options <= known, f"{page}: {line}"


def options_of_script(words: list[str], folder: Path) -> set[str]:
    """Read the options of a script, or of the one that makes its parser."""
    if words[0] == "-m":
        script = find_spec(words[1]).origin if words[1] != "venv" else None
        paths = [Path(script), Path(script).with_name("__main__.py")] if script else []
    else:
        found = [place / words[0] for place in (ROOT, folder) if (place / words[0]).is_file()]
        assert found or words[0] == "-", words
        paths = [*found, *(path.with_name("particles.py") for path in found)]
    text = "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    return set(re.findall(r'"(--[a-z0-9-]+)"', text))


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
