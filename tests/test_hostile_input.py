"""What strangers feed in works, or raises one clear error: quickly, and in little memory.

`docs/hostile-input.md` has the table of what happened, which these tests hold to be true.
`HDMNET_WRITE_DOCS=1 pytest tests/test_hostile_input.py` writes it again.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import ATTEMPTS, Attempt

PAGE = Path(__file__).parents[1] / "docs" / "hostile-input.md"
WRITES = "HDMNET_WRITE_DOCS" in os.environ
LIMIT = 400e6  # bytes
HEAD = """\
# What happened to hostile and unlucky input

Each row was tried, and is tried again by every run of the tests, which write this page
(`HDMNET_WRITE_DOCS=1 pytest tests/test_hostile_input.py`) and fail where it is no longer true. What
does not work raises one error, takes less than 400 MB, and leaves no file behind. `…` stands for a
folder, or for what another library says.
"""


def outcome(attempt: Attempt, folder: Path) -> str:
    """What an attempt came to, in words that do not depend on the machine."""
    try:
        return attempt(folder)
    except (OSError, TypeError, ValueError) as error:
        text = str(error)
        if type(error.__cause__) not in (type(None), TypeError, ValueError):
            text = text.replace(str(error.__cause__), "…")  # another library's, of any version
        text = text.replace(f"{folder}/", "…/").replace(str(folder), "…")
        return f"{type(error).__name__}: {text}".replace("\n", " ").replace("|", "\\|")


def peak() -> int:
    """The most memory that this process held since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def forget_peak() -> None:
    """Let `peak` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[tuple[str, str], str]]:
    """The table of the page; a table to be written, if it is asked for."""
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
    monkeypatch.chdir(tmp_path)  # and back
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


def test_the_page_has_what_is_tried_and_no_more(documented: dict[tuple[str, str], str]) -> None:
    assert documented.keys() == ATTEMPTS.keys()
