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

if TYPE_CHECKING:
    from torch import Tensor

    from hdmnet.segmentation import MulticlassSegmentation, Segmentation

    Answer: TypeAlias = Segmentation | MulticlassSegmentation

FORMATS = ("png", "coco", "json")
SETTINGS, COCO, JOURNAL = "hdmnet.json", "coco.json", "coco.jsonl"


@dataclass
class Answers:
    """The answers in a folder.

    Each answer is one or more of NAME.png, NAME.json and NAME_overlay.jpg. The results in COCO's
    format are lines of `coco.jsonl`, of which `finish` makes `coco.json`. `hdmnet.json` says what
    the answers were made with: other settings would mix with them.
    """

    folder: Path
    formats: tuple[str, ...]
    overlay: bool
    names: tuple[str, ...]
    """The classes. Empty: one without a name."""
    _journal: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self, settings: Mapping[str, Any]) -> None:
        """Look at what is there.

        Raises:
            click.UsageError: If it was made with other settings.
        """
        about, journal = self.folder / SETTINGS, self.folder / JOURNAL
        if about.exists():
            before = json.loads(about.read_text())
            if changed := [key for key, value in settings.items() if before.get(key) != value]:
                raise click.UsageError(
                    f"{self.folder} holds answers that were made with another value of "
                    f"{', '.join(changed)}: choose another --out, or give --overwrite"
                )
        if "coco" in self.formats and journal.exists():
            for line in journal.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # the last line may have been cut off
                    record = json.loads(line)
                    self._journal[record["name"]] = record

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Prepare the folder for new answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / SETTINGS, json.dumps(settings, indent=1))
        if "coco" in self.formats:
            _write(self.folder / JOURNAL, "".join(map(_line, self._journal.values())))

    def has(self, name: str) -> bool:
        """Whether all files of an answer are there."""
        if "coco" in self.formats and name not in self._journal:
            return False
        return all(path.exists() for path in self._files(name).values())

    def write(self, name: str, query: Path, image: Tensor, answer: Answer) -> None:
        """Write one answer."""
        files = self._files(name)
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if "overlay" in files:
            picture = answer.overlay(image)
            _write(files["overlay"], lambda file: picture.save(file, "JPEG", quality=90))
        if "json" in files:
            _write(files["json"], json.dumps(self._describe(query, answer), indent=1))
        if "coco" in self.formats:
            height, width = answer.probability.shape[-2:]
            record = {"name": name, "file_name": query.as_posix(), "height": height, "width": width}
            self._journal[name] = {**record, "results": answer.to_coco()}
            with (self.folder / JOURNAL).open("a") as file:
                file.write(_line(self._journal[name]))
        if "png" in files:
            answer.save(files["png"])

    def finish(self) -> None:
        """Write `coco.json`: images, annotations and categories."""
        if "coco" not in self.formats:
            return
        import pycocotools.mask as coco

        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, name in enumerate(sorted(self._journal), start=1):
            record = self._journal[name]
            images.append(
                {"id": number} | {key: record[key] for key in ("file_name", "height", "width")}
            )
            for result in record["results"]:
                run_lengths = result["segmentation"]
                about = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "area": int(coco.area(run_lengths)),
                    "bbox": coco.toBbox(run_lengths).tolist(),
                    "iscrowd": 0,
                }
                annotations.append(result | about)
        categories = [
            {"id": i, "name": name} for i, name in enumerate(self.names or ("object",), 1)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write(self.folder / COCO, json.dumps(content))

    def _files(self, name: str) -> dict[str, Path]:
        files = {kind: self.folder / f"{name}.{kind}" for kind in ("png", "json")}
        files = {kind: path for kind, path in files.items() if kind in self.formats}
        if self.overlay:
            files["overlay"] = self.folder / f"{name}_overlay.jpg"
        return files

    def _describe(self, query: Path, answer: Answer) -> dict[str, Any]:
        height, width = answer.probability.shape[-2:]
        if isinstance(answer, hdmnet.MulticlassSegmentation):
            classes = {name: answer[name] for name in answer.names}
        else:
            classes = {"object": answer}
        return {
            "image": query.as_posix(),
            "height": height,
            "width": width,
            "classes": [{"name": name, **_measure(one)} for name, one in classes.items()],
        }


def _write(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file completely, or not at all."""
    from hdmnet._files import write_whole

    write_whole(path, content if callable(content) else lambda file: file.write_text(content))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _measure(answer: Segmentation) -> dict[str, Any]:
    """Describe the mask of one class: presence, share of the image, mean probability, box."""
    mask = answer.mask
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    box = None
    if len(rows):
        box = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
    return {
        "presence": round(answer.presence, 4),
        "area": round(mask.float().mean().item(), 6),
        "score": round(answer.probability[mask].mean().item(), 4) if box else None,
        "box": box,
    }


def digest(*parts: str | Path) -> str:
    """Hash texts, and the content of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return total.hexdigest()[:16]
