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
    says which files it has and what they were made of: so a repeated command goes on, and other
    images, supports and options do not mix with what is there. `coco.json` is made of these lines.
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
            fields = {"hash", "files"} if "name" in record else {"hash"}
            if not isinstance(record, dict) or not fields <= record.keys():
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
        path = self.folder / COCO
        own = any("results" in record for record in self._records.values())
        if "coco" in self.formats and path.exists() and not own and not overwrite:
            raise _foreign(path)
        return {
            name: path for name, path in queries.items() if overwrite or not self._has(name, path)
        }

    def write(self, name: str, query: Path, image: ImageLike, answer: Answer) -> None:
        """Write one answer."""
        files = self._files(name)
        for path in (self.folder / JOURNAL, *files.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
        others = self._drop_old(name, query)
        height, width = answer.probability.shape[-2:]
        record = _source(query) | {"name": name, "hash": self._hash}
        record["files"] = sorted({*files, *others})
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

    def _drop_old(self, name: str, query: Path) -> list[str]:
        """Delete what the next write replaces: after a crash, it must not look like the new answer.

        Returns:
            The other files of this answer, which stay.
        """
        record = self._records.get(name)
        kinds = list(self._files(name))
        others = [kind for kind in record["files"] if kind not in kinds] if record else []
        if record and not (record["hash"] == self._hash and _is_source(record, query)):
            kinds, others = kinds + others, []
        for kind in kinds:
            self._file(name, kind).unlink(missing_ok=True)
        return others

    def _has(self, name: str, query: Path) -> bool:
        record = self._records.get(name)
        files = self._files(name)
        own = record["files"] if record else []
        for kind, path in files.items():
            if kind not in own and path.exists():
                raise _foreign(path)
        if record is None:
            return False
        if record["hash"] != self._hash:
            before = self._known.get(record["hash"], {})
            changed = [key for key in self.settings if before.get(key) != self.settings[key]]
            raise click.UsageError(
                f"{self.folder} has an answer to {name} that was made with another value of "
                f"{', '.join(changed)}: choose another --out, or give --overwrite"
            )
        if not _is_source(record, query):
            raise click.UsageError(
                f"{self.folder} has an answer {name} to {record['source']}, which is another image "
                f"than {query}: choose another --out, or give --overwrite"
            )
        complete = all(path.exists() for path in files.values())
        return complete and ("coco" not in self.formats or "results" in record)

    def _about(self) -> dict[str, Any]:
        return {"hash": self._hash, **self.settings}

    def _files(self, name: str) -> dict[str, Path]:
        kinds: list[str] = [kind for kind in ("png", "json") if kind in self.formats]
        kinds += ["overlay"] if self.overlay else []
        return {kind: self._file(name, kind) for kind in kinds}

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / (f"{name}_overlay.jpg" if kind == "overlay" else f"{name}.{kind}")

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
    return _stamp(query) | {"content": digest(query) if query.exists() else ""}


def _stamp(query: Path) -> dict[str, Any]:
    if not query.exists():  # a broken link, or deleted since it was read
        return {"source": str(query.resolve()), "bytes": 0, "time": 0}
    about = query.stat()
    return {"source": str(query.resolve()), "bytes": about.st_size, "time": about.st_mtime_ns}


def _is_source(record: Mapping[str, Any], query: Path) -> bool:
    """Whether an answer is of this image. It is only read if its time has changed."""
    changed = {key for key, value in _stamp(query).items() if record[key] != value}
    return not changed or (changed == {"time"} and record["content"] == digest(query))


def _foreign(path: Path) -> click.UsageError:
    return click.UsageError(
        f"{path} is there, but not from this command: choose another --out, or give --overwrite"
    )


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
