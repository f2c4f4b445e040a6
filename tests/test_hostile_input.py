"""Hostile and unlucky input works or raises one clear error, with little memory.

`docs/hostile-input.md` lists the outcome of each attempt of `hostile.py`. These tests repeat the
attempts and compare the outcomes. `make hostile-page` writes the page again.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import ATTEMPTS, Attempt

PAGE = Path(__file__).parents[1] / "docs" / "hostile-input.md"
WRITES = "HDMNET_WRITE_DOCS" in os.environ
LIMIT = 400e6  # bytes that one attempt may add to the memory of the process
HEAD = """\
# Hostile and unlucky input

This page is an appendix of the documentation. The tests generate it. Do not edit it by hand: run
`make hostile-page`.

Each row is one attempt and its outcome. The tests repeat every attempt, and fail if its row is no
longer true. Every attempt works or raises one error. It takes less than 400 MB of memory and leaves
no temporary file behind. `…` stands for a folder, or for the message of another library.
"""


def outcome(attempt: Attempt, folder: Path) -> str:
    """Run an attempt, and describe its outcome in words that do not depend on the machine."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            happened = attempt(folder)
        ours = [str(w.message) for w in caught if "hdmnet" in Path(w.filename).parts]
        return "; warns that ".join([happened, *ours])
    except (OSError, TypeError, ValueError) as error:
        text = str(error)
        if type(error.__cause__) not in (type(None), TypeError, ValueError):
            text = text.replace(str(error.__cause__), "…")  # another library's message
        text = text.replace(f"{folder}/", "…/").replace(str(folder), "…")
        return f"{type(error).__name__}: {text}".replace("\n", " ").replace("|", "\\|")


def peak() -> int:
    """Return the peak memory of this process since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def forget_peak() -> None:
    """Reset `peak`."""
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[tuple[str, str], str]]:
    """The outcomes on the page, or an empty table to fill if the tests write the page."""
    if WRITES:
        table: dict[tuple[str, str], str] = {}
        yield table
        rows = ["| kind | what | what happened |", "|---|---|---|"]
        rows += [f"| {kind} | {what} | {table[kind, what]} |" for kind, what in ATTEMPTS]
        PAGE.write_text(f"{HEAD}\n" + "\n".join(rows) + "\n", encoding="utf-8")
        return
    cells = re.findall(r"^\| (.+?) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    yield {(kind, what): happened for kind, what, happened in cells[1:]}


@pytest.mark.parametrize(("kind", "what"), ATTEMPTS)
def test_attempt(
    documented: dict[tuple[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # at the end, this also undoes the chdir of an attempt
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limited = Path("/proc/self/clear_refs").exists()
    before = 0
    if limited:
        forget_peak()
        before = peak()
    happened = outcome(ATTEMPTS[kind, what], tmp_path)
    if limited:
        assert peak() - before < LIMIT
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob(".saving-*"))
    if WRITES:
        documented[kind, what] = happened
    assert happened == documented[kind, what]


def test_the_page_lists_exactly_the_attempts(documented: dict[tuple[str, str], str]) -> None:
    assert documented.keys() == ATTEMPTS.keys()
