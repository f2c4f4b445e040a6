"""The files that `hdmnet segment` writes, and what is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

import hdmnet
from hdmnet._coco import coco_dataset

if TYPE_CHECKING:
    from hdmnet.images import ImageLike
    from hdmnet.segmentation import MulticlassSegmentation, Segmentation

    Answer: TypeAlias = Segmentation | MulticlassSegmentation

FORMATS = ("png", "coco", "json")
JOURNAL, COCO = "hdmnet.jsonl", "coco.json"


@dataclass
class Answers:
    """The answers in a folder.

    Each answer is one or more of NAME.png, NAME.json and NAME_overlay.jpg. A line of `hdmnet.jsonl`
    says what each was made of: so a repeated command goes on, and other images, supports and
    options do not mix with what is there. `coco.json` is made of these lines.
    """

    folder: Path
    formats: tuple[str, ...]
    overlay: bool
    names: tuple[str, ...]
    """The classes. Empty: one without a name."""
    settings: Mapping[str, Any]
    """All that the answers depend on, besides the images."""
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings in the journal, by their hash."""

    def __post_init__(self) -> None:
        self._hash = digest(json.dumps(self.settings))
        journal = self.folder / JOURNAL
        text = journal.read_text() if journal.exists() else ""
        self._cut = "" if text.endswith("\n") or not text else "\n"
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a crash cut it off, before its answer was written
            if not isinstance(record, dict) or "hash" not in record:
                raise click.UsageError(
                    f"line {number} of {journal} is damaged: choose another --out"
                )
            if "name" in record:
                self._records[record["name"]] = record
            else:
                self._known[record["hash"]] = record

    def todo(self, queries: Mapping[str, Path], *, overwrite: bool) -> dict[str, Path]:
        """Return the queries that have no answer yet, or all of them.

        Raises:
            click.UsageError: If a file in the folder is something else than the answer to a query.
        """
        same = queries.get(Path(COCO).stem)
        if same and "coco" in self.formats and "json" in self.formats:
            raise click.UsageError(f"{COCO} would be the answer to {same} and that to all")
        return {
            name: path for name, path in queries.items() if overwrite or not self._has(name, path)
        }

    def write(self, name: str, query: Path, image: ImageLike, answer: Answer) -> None:
        """Write one answer."""
        files = self._files(name)
        for path in (self.folder / JOURNAL, *files.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
        height, width = answer.probability.shape[-2:]
        record = _source(query) | {"name": name, "hash": self._hash}
        record |= {"file_name": query.as_posix(), "height": height, "width": width}
        if "coco" in self.formats:
            record["results"] = answer.to_coco()
        new = [record] if self._hash in self._known else [self._about(), record]
        # The line comes first: a file without a line is not ours.
        with (self.folder / JOURNAL).open("a") as file:
            file.write(self._cut + "".join(json.dumps(line) + "\n" for line in new))
        self._cut = ""
        self._known[self._hash], self._records[name] = self._about(), record
        if "overlay" in files:
            picture = answer.overlay(image)
            _write(files["overlay"], lambda file: picture.save(file, "JPEG", quality=90))
        if "json" in files:
            _write(files["json"], json.dumps(self._describe(query, answer), indent=1))
        if "png" in files:
            answer.save(files["png"])

    def finish(self) -> None:
        """Write `coco.json`: images, annotations and categories."""
        records = {
            name: record
            for name, record in sorted(self._records.items())
            if record["hash"] == self._hash and "results" in record
        }
        if "coco" not in self.formats or not records:
            return
        content = coco_dataset(records.values(), self.names or ("object",))
        _write(self.folder / COCO, json.dumps(content))

    def _has(self, name: str, query: Path) -> bool:
        there = [path for path in self._files(name).values() if path.exists()]
        record = self._records.get(name)
        if record is None:
            if there:
                raise click.UsageError(
                    f"{there[0]} is there, but not from this command: choose another --out, or "
                    "give --overwrite"
                )
            return False
        if record["hash"] != self._hash:
            before = self._known.get(record["hash"], {})
            changed = [key for key in self.settings if before.get(key) != self.settings[key]]
            raise click.UsageError(
                f"{self.folder} has an answer to {name} that was made with another value of "
                f"{', '.join(changed)}: choose another --out, or give --overwrite"
            )
        if any(record[key] != value for key, value in _source(query).items()):
            raise click.UsageError(
                f"{self.folder} has an answer {name} to {record['source']}, which is another image "
                f"than {query}: choose another --out, or give --overwrite"
            )
        complete = len(there) == len(self._files(name))
        return complete and ("coco" not in self.formats or "results" in record)

    def _about(self) -> dict[str, Any]:
        return {"hash": self._hash, **self.settings}

    def _files(self, name: str) -> dict[str, Path]:
        files = {kind: self.folder / f"{name}.{kind}" for kind in ("png", "json")}
        files = {kind: path for kind, path in files.items() if kind in self.formats}
        if self.overlay:
            files["overlay"] = self.folder / f"{name}_overlay.jpg"
        return files

    def _describe(self, query: Path, answer: Answer) -> dict[str, Any]:
        height, width = answer.probability.shape[-2:]
        if isinstance(answer, hdmnet.MulticlassSegmentation):
            classes = [
                {"name": name, "label": i, **_measure(only, answer[name].presence)}
                for i, (name, only) in enumerate(answer.without_overlaps().items(), start=1)
            ]
        else:
            classes = [{"name": "object", "label": 255, **_measure(answer, answer.presence)}]
        return {
            "image": query.as_posix(),
            "height": height,
            "width": width,
            "classes": classes,
        }


def digest(*parts: str | Path) -> str:
    """Hash texts, and the content of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return total.hexdigest()[:16]


def _source(query: Path) -> dict[str, Any]:
    """Tell an image from others of the same name."""
    return {
        "source": str(query.resolve()),
        "bytes": query.stat().st_size if query.exists() else 0,  # 0: a broken link
    }


def _write(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file completely, or not at all."""
    from hdmnet._files import write_whole

    write_whole(path, content if callable(content) else lambda file: file.write_text(content))


def _measure(answer: Segmentation, presence: float) -> dict[str, Any]:
    """Describe the mask of one class: presence, share of the image, mean probability, box."""
    mask = answer.mask
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    box = None
    if len(rows):
        box = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
    return {
        "presence": round(presence, 4),
        "area": round(mask.float().mean().item(), 6),
        "score": round(answer.probability[mask].mean().item(), 4) if box else None,
        "box": box,
    }
