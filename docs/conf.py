"""Configuration of the documentation: `make docs` builds it."""

import os
import re
from importlib.metadata import version as installed
from inspect import signature
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

project = "hdmnet"
author = "The hdmnet authors"
copyright = f"2026, {author}"
version = release = installed("hdmnet")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_llms_txt",
]
exclude_patterns = ["_build"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300

myst_heading_anchors = 3

# Large packages that the reference needs only as names.
autodoc_mock_imports = ["cvat_sdk", "fiftyone", "label_studio_sdk", "skimage"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
add_module_names = False
toc_object_entries_show_parents = "hide"
default_role = "code"  # docstrings are Markdown: one backquote is code

html_theme = "furo"
html_title = f"hdmnet {release}"
html_show_sphinx = False
llms_txt_uri_template = "{docname}.html"  # relative: no address of the site is known
llms_txt_summary = "Few-shot semantic segmentation in PyTorch: HDMNet, its parts and its weights"
ROOT = Path(__file__).resolve().parents[1]
COPIES = {
    "about/benchmarks": "benchmarks/README.md",
    "about/changelog": "CHANGELOG.md",
    "about/contributing": "CONTRIBUTING.md",
    "about/gallery-photographs": "examples/gallery/README.md",
    "about/hdmnet-lite0": "hdmnet/weights/hdmnet-lite0/README.md",
    "about/hdmnet-lite0-1": "hdmnet/weights/hdmnet-lite0@1/README.md",
    "about/security": "SECURITY.md",
    "about/training": "examples/train_lite0/README.md",
}
"""Pages of the site that are copies of files outside of this folder."""
PAGE_OF = {ROOT / path: ROOT / "docs" / f"{name}.md" for name, path in COPIES.items()}
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#:]+)(#[^)]*)?\)")
FORMULA = re.compile(r"^[^\s:`-][^:`]* = ")


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Fill the copies, and let all links lead to pages of the site."""
    page = ROOT / "docs" / f"{name}.md"
    file = ROOT / COPIES[name] if name in COPIES else page

    def place(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        to = (file.parent / target).resolve()
        to = PAGE_OF.get(to, to)
        if to.suffix == ".md" and ROOT / "docs" not in to.parents:
            return text.strip("[]")  # the site has no such page
        return f"{text}({os.path.relpath(to, page.parent)}{anchor})"

    text = file.read_text(encoding="utf-8") if name in COPIES else source[0]
    source[0] = LINK.sub(place, re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))


def read_docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Keep the lines of formulas apart. Bars mean norms: in reStructuredText, they would not."""
    text = "\n".join(lines).replace("|", "\\|")
    paragraphs = text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        rows = paragraph.split("\n")
        if len(rows) > 1 and FORMULA.match(rows[0]) and " = " in rows[-1] + rows[1]:
            paragraphs[i] = "\n".join(f"| {row}" for row in rows)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def sign(
    app: Sphinx, what: str, name: str, thing: Any, *rest: Any
) -> tuple[str, str | None] | None:
    """Show the arguments of a model's `__init__`: its `__new__`, of the Hub's mixin, hides them."""
    if what == "class" and "__new__" not in vars(thing) and rest[1] == "(*args, **kwargs)":
        parameters = list(signature(thing.__init__).parameters.values())[1:]
        return stringify_signature(signature(thing.__init__).replace(parameters=parameters)), None
    return None


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", sign)
