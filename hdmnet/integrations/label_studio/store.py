"""The files of the supports that annotations became."""

import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from urllib.parse import quote, unquote

import torch

from hdmnet.integrations.label_studio.regions import Json
from hdmnet.supports import SupportSet


class SupportStore:
    """Encoded supports: PROJECT/TASK/ANNOTATION/LABEL.safetensors in a folder.

    A project is named by its number, a point, and the second when it was made.

    Args:
        folder: The folder.
        shots: The newest annotations of a label are its supports, up to this number.
    """

    def __init__(self, folder: Path, shots: int) -> None:
        self._folder, self._shots, self._lock = folder, shots, Lock()

    def version(self, project: str) -> str:
        """Name the present supports of a project."""
        with self._lock:
            return _version(self._files(project))

    def load(
        self, project: str, labels: Sequence[str], device: torch.device
    ) -> tuple[str, dict[str, SupportSet]]:
        """Return the version, and the supports of each label that has some."""
        files = defaultdict(list)
        supports = {}
        with self._lock:
            paths = self._files(project)
            version = _version(paths)
            for path in paths:
                files[unquote(path.stem)].append(path)
            for label in labels:
                if label in files:
                    newest = files[label][-self._shots :]
                    first, *others = (SupportSet.load(path, device) for path in newest)
                    supports[label] = first.merge(*others)
        return version, supports

    def save(self, folder: Path, label: str, supports: SupportSet) -> None:
        """Write the supports of a label to the folder of an annotation."""
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True)
            supports.save(folder / f"{quote(label, safe='')}.safetensors")

    def delete(self, project: Json, pattern: str) -> Path:
        """Delete the folders that fit a pattern, TASK or TASK/ANNOTATION. Return such a path."""
        made = int(datetime.fromisoformat(project["created_at"]).timestamp())
        folder = self._folder / f"{project['id']:d}.{made}"
        with self._lock:
            for path in folder.glob(pattern):
                shutil.rmtree(path)
        return folder / pattern

    def _files(self, project: str) -> list[Path]:
        """Return the files of a project, of the oldest annotation first."""
        if not re.fullmatch(r"\d+\.\d+", project):
            raise ValueError(f"expected a project such as 7.1790000000, got {project!r}")
        files = (self._folder / project).glob("*/*/*.safetensors")
        return sorted(files, key=lambda path: (int(path.parent.name), path.name))


def _version(paths: Sequence[Path]) -> str:
    files = [(str(path), path.stat().st_mtime_ns) for path in paths]
    return f"hdmnet-{zlib.crc32(repr(files).encode()):08x}"
