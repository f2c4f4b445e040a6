"""Files that are whole, or as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to: it becomes `path` at the end, or vanishes after an error."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # others may write it too
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
