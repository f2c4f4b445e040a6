"""What one visitor of the demo has shown and got. All of it stays in memory."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from hdmnet._coco import coco_dataset
from hdmnet.annotations import Annotation, Box, Points
from hdmnet.images import load_image, load_mask
from hdmnet.model import HDMNet
from hdmnet.preprocess import resize_image
from hdmnet.segmentation import MulticlassSegmentation, Segmentation
from hdmnet.supports import SupportSet

Stroke: TypeAlias = list[tuple[float, float]]
"""Points that the pointer went through, as shares of width and height, in [0, 1]."""
LONGEST = 1024
"""Pixels of the longer side of pictures. The model sees far fewer: larger ones are reduced."""
NAME = re.compile(r"\w[\w .-]*")
"""Names of classes, which become names of files."""
BLUE = (0, 110, 255)


@dataclass(eq=False)
class Picture:
    """A picture of the visitor."""

    name: str
    image: Image.Image
    """At most `LONGEST` pixels long."""
    own_size: tuple[int, int]
    """(width, height) of the file."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            ValueError: If it is not an image. The message has the visitor's name of the file.
        """
        name = Path(path).name
        try:
            pixels = load_image(path)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as an image") from error
        height, width = pixels.shape[-2:]
        scale = min(1.0, LONGEST / max(height, width))
        if scale < 1:
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            pixels = resize_image(pixels, size)
        image = Image.fromarray(pixels.mul(255).round().byte().permute(1, 2, 0).numpy())
        return cls(name, image, (width, height))


@dataclass(eq=False)
class Support(Picture):
    """A picture that shows a class, or does not."""

    annotation: Annotation | None = None
    """A box or points. None: the mask was painted, or there is none."""
    mask: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """(H, W) bool: what the annotation stands for, or what was painted."""
    negative: bool = False
    """Whether the picture shows something else than the class."""

    def __post_init__(self) -> None:
        self.clear()

    @property
    def marked(self) -> Annotation | Tensor:
        """The annotation, or else the mask: what the model gets."""
        return self.annotation or self.mask

    def clear(self) -> None:
        """Remove the annotation."""
        self.annotation = None
        self.mask = torch.zeros(self.image.height, self.image.width, dtype=torch.bool)

    def paint(self, path: Stroke, brush: float, *, erase: bool = False) -> None:
        """Paint a stroke of the mask.

        Args:
            path: Where the stroke goes.
            brush: Its width, as a share of the shorter side of the picture.
            erase: Whether the stroke removes, and does not add.
        """
        picture = Image.fromarray(self.mask.numpy()).convert("L")
        draw, radius = ImageDraw.Draw(picture), max(0.5, brush * min(self.image.size) / 2)
        pixels = [self._pixel(point) for point in path]
        value = 0 if erase else 255
        draw.line(pixels, fill=value, width=round(2 * radius), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        self.annotation, self.mask = None, torch.from_numpy(np.array(picture) > 0)

    def annotate(self, path: Stroke, tool: str, model: HDMNet) -> None:
        """Draw a box from the first point of a path to its last, or add its first point.

        Args:
            path: Where the pointer went.
            tool: "box", "point" or "not_point".
            model: Turns the annotation into a mask.

        Raises:
            ValueError: If the box has no area, or there is no point on the object yet.
        """
        (x0, y0), (x1, y1) = (self._pixel(path[i]) for i in (0, -1))
        annotation: Annotation
        if tool == "box":
            if abs(x1 - x0) < 2 or abs(y1 - y0) < 2:
                raise ValueError("drag from one corner of the object to the opposite one")
            annotation = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        else:
            before = self.annotation if isinstance(self.annotation, Points) else None
            positive = list(before.positive) if before else []
            negative = list(before.negative) if before else []
            (positive if tool == "point" else negative).append((x0, y0))
            if not positive:
                raise ValueError("first mark a point on the object")
            annotation = Points(positive, negative)
        self.mask = model.pseudo_mask(self.image, annotation) == 1
        self.annotation = annotation

    def load_mask(self, path: str | Path) -> None:
        """Read the mask from a file of the picture's own size.

        Raises:
            ValueError: If it is not a mask of this picture.
        """
        width, height = self.own_size
        try:
            label = load_mask(path, (height, width)) == 1
        except (OSError, TypeError) as error:
            raise ValueError(f"{Path(path).name} cannot be read as a mask") from error
        except ValueError as error:
            reason = str(error).replace(str(path), Path(path).name)
            raise ValueError(reason) from error
        size = (self.image.height, self.image.width)
        self.annotation = None
        self.mask = F.interpolate(label[None, None].float(), size, mode="area")[0, 0] > 0.5

    def drawing(self) -> Image.Image:
        """Draw the picture with its mask in blue, and the annotation."""
        shown = Segmentation(self.mask.float()).overlay(self.image, color=BLUE)
        draw, width = ImageDraw.Draw(shown), 1 + max(shown.size) // 300
        if isinstance(self.annotation, Box):
            a = self.annotation
            draw.rectangle((a.x0, a.y0, a.x1, a.y1), outline="white", width=width)
        if isinstance(self.annotation, Points):
            for points, color in (
                (self.annotation.positive, BLUE),
                (self.annotation.negative, "red"),
            ):
                for x, y in points:
                    around = (x - 3 * width, y - 3 * width, x + 3 * width, y + 3 * width)
                    draw.ellipse(around, fill=color, outline="white", width=width)
        return shown

    def _pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        """Turn shares of width and height into pixels inside of the picture."""
        width, height = self.image.size
        x, y = (
            min(round(share * side, 2), side - 0.01)
            for share, side in zip(point, (width, height), strict=True)
        )
        return x, y


@dataclass(frozen=True)
class Choice:
    """What the sliders say: it changes masks, and computes nothing again."""

    threshold: float = 0.5
    """A pixel shows the class if its probability is above this."""
    presence: float | None = None
    """Smallest presence of an answer that keeps its mask. None: the rule of the model."""


class Visit:
    """Classes, queries and answers of one visitor.

    Args:
        model: The model, which all visitors share.
    """

    def __init__(self, model: HDMNet) -> None:
        self.lock = RLock()
        self.classes: dict[str, list[Support]] = {}
        self.queries: list[Picture] = []
        self.answers: list[MulticlassSegmentation] = []
        """As the network gives them, before thresholds."""
        self.self_support = False
        """Whether the answers were made with self-support."""
        self.revision = 0
        """Number of pictures drawn."""
        self._model = model
        self._encoded: dict[str, SupportSet] = {}

    def add_support(self, name: str, path: str | Path) -> Support:
        """Add a picture to a class.

        Raises:
            ValueError: If the file is not an image, or the name cannot be the name of a file.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a class: use letters, digits, space, - . _")
        support = Support.read(path)
        taken = {other.name for other in self.classes.get(name, [])}
        support.name = _unique(support.name, taken)
        self.classes.setdefault(name, []).append(support)
        self.changed(name)
        return support

    def add_query(self, path: str | Path) -> Picture:
        """Add a picture to segment.

        Raises:
            ValueError: If the file is not an image.
        """
        picture = Picture.read(path)
        picture.name = _unique(picture.name, {other.name for other in self.queries})
        self.queries.append(picture)
        return picture

    def remove(self, name: str, support: Support) -> None:
        """Remove a picture from a class, and the class if it was the last."""
        self.changed(name)
        self.classes[name].remove(support)
        if not self.classes[name]:
            del self.classes[name]

    def changed(self, name: str) -> None:
        """Forget what was computed with a class."""
        self._encoded.pop(name, None)

    def encode(self) -> dict[str, SupportSet]:
        """Encode the classes that are new or have changed.

        Raises:
            ValueError: If a class has no support, or a support no mask.
        """
        if not self.classes:
            raise ValueError("there is no class yet: add an image that shows it, and mark it")
        for name, supports in self.classes.items():
            if name not in self._encoded:
                positive, masks = self._positive(name)
                negatives = [
                    (s.image, s.marked) if s.mask.any() else s.image for s in supports if s.negative
                ]
                images = [support.image for support in positive]
                self._encoded[name] = self._model.encode_supports(images, masks, negatives or None)
        return {name: self._encoded[name] for name in self.classes}

    def segment(self, *, self_support: bool = False) -> Iterator[Picture]:
        """Segment the queries, and yield each when its answer is there.

        Args:
            self_support: As for `predict`.

        Raises:
            ValueError: If there are no queries, or as `encode`.
        """
        if not self.queries:
            raise ValueError("there is no picture to segment yet: add one")
        sets = self.encode()
        self.answers, self.self_support = [], self_support
        images = [query.image for query in self.queries]
        found = self._model.predict_iter(
            images, sets, presence_threshold=0, self_support=self_support
        )
        for query, answer in zip(self.queries, found, strict=True):
            if isinstance(answer, Exception):  # the pictures were read before
                raise answer
            self.answers.append(answer)  # type: ignore[arg-type]
            yield query

    def rate(self) -> list[tuple[str, str, float]]:
        """Return class, picture and agreement of each support, worst last in each class.

        Raises:
            ValueError: If no class has two supports, or as `encode`.
        """
        rows = []
        for name in self.classes:
            supports, masks = self._positive(name)
            if len(supports) > 1:
                images = [support.image for support in supports]
                for rating in self._model.rate_supports(images, masks):
                    rows.append((name, supports[rating.index].name, rating.agreement))
        if not rows:
            raise ValueError("ratings compare the supports of a class: add a second one")
        return rows

    def chosen(self, choice: Choice) -> Iterator[tuple[Picture, MulticlassSegmentation]]:
        """Yield each query and its answer, with the thresholds of the sliders."""
        for query, answer in zip(self.queries, self.answers, strict=False):
            parts = {}
            for name in answer.names:
                part = answer[name]
                if choice.presence is None:
                    part = part.lowered()
                else:
                    part = part.emptied_below(choice.presence)
                parts[name] = replace(part, probability=_moved(part.probability, choice.threshold))
            yield query, MulticlassSegmentation.from_answers(parts)

    def answer_files(self, choice: Choice) -> dict[str, bytes]:
        """Return `coco.json`, and `masks.zip`: a mask of each query, and those of the supports.

        Masks have the size of the visitor's file. One class gives masks of 0 and 255, several a
        label map.

        Raises:
            ValueError: If there is no answer yet.
        """
        if not self.answers:
            raise ValueError("there is no answer yet: segment a picture first")
        files: dict[str, bytes] = {}
        records: list[dict[str, Any]] = []
        with TemporaryDirectory() as folder:
            for query, answer in self._full_size(choice):
                path = Path(folder) / f"{query.name}.png"
                alone(answer).save(path)
                files[f"answers/{path.name}"] = path.read_bytes()
                width, height = query.own_size
                record = {"file_name": query.name, "width": width, "height": height}
                results = [
                    result | {"score": _moved_back(result["score"], choice.threshold)}
                    for result in answer.to_coco()
                ]
                records.append(record | {"results": results})
        for name, support in self.painted().items():
            mask = Image.fromarray(support.mask.numpy())
            buffer = io.BytesIO()
            full = mask.resize(support.own_size, Image.Resampling.NEAREST)
            full.convert("L").save(buffer, "PNG")
            files[name] = buffer.getvalue()
        coco = coco_dataset(records, self.answers[0].names)
        return {"masks.zip": _zip(files), "coco.json": json.dumps(coco).encode()}

    def class_files(self) -> dict[str, bytes]:
        """Return the file of each class for `SupportSet.load`."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "class.safetensors"
            files = {}
            for name, encoded in self.encode().items():
                encoded.save(path)
                files[f"{name}.safetensors"] = path.read_bytes()
        return files

    def onnx_files(self) -> dict[str, bytes]:
        """Return a graph of each class, which needs ONNX Runtime only.

        Raises:
            ImportError: If the packages of `hdmnet[onnx]` are not installed.
        """
        from hdmnet.onnx import export_onnx

        files = {}
        for name, encoded in self.encode().items():
            with TemporaryDirectory() as folder:
                files[f"{name}.onnx"] = export_onnx(self._model, folder, encoded).read_bytes()
        return files

    def painted(self) -> dict[str, Support]:
        """Return the supports whose masks are files, by the path that `python` gives them."""
        return {
            f"annotations/{name}/{s.name}.png": s
            for name, supports in self.classes.items()
            for s in supports
            if s.annotation is None and s.mask.any()
        }

    def _positive(self, name: str) -> tuple[list[Support], list[Annotation | Tensor]]:
        """Return the supports of a class, and what marks it in each."""
        supports = [s for s in self.classes[name] if not s.negative]
        if not supports:
            raise ValueError(
                f"all images of {name} say that it is not there: add one that shows it"
            )
        for support in supports:
            if not support.mask.any():
                raise ValueError(f"nothing is marked in {support.name}: mark {name}, or remove it")
        return supports, [support.marked for support in supports]

    def _full_size(self, choice: Choice) -> Iterator[tuple[Picture, MulticlassSegmentation]]:
        """Yield the queries and their answers, in the size of the files."""
        for query, answer in self.chosen(choice):
            width, height = query.own_size
            probability = answer.probability
            if probability.shape[-2:] != (height, width):
                full = F.interpolate(probability[None], (height, width), mode="bilinear")[0]
                parts = zip(answer.names, full, strict=True)
                answer = MulticlassSegmentation.from_answers({n: Segmentation(p) for n, p in parts})
            yield query, answer


def alone(answer: MulticlassSegmentation) -> MulticlassSegmentation | Segmentation:
    """Return the answer of the class, if there is only one."""
    return answer if len(answer.names) > 1 else answer[answer.names[0]]


def _moved(probability: Tensor, threshold: float) -> Tensor:
    """Move the threshold of a probability to 0.5, where masks have theirs."""
    above = 0.5 + 0.5 * (probability - threshold) / (1 - threshold)
    return torch.where(probability > threshold, above, 0.5 * probability / threshold)


def _moved_back(probability: float, threshold: float) -> float:
    """Return the probability that `_moved` turned into this one, above 0.5."""
    return threshold + (1 - threshold) * (2 * probability - 1)


def _unique(name: str, taken: Iterable[str]) -> str:
    """Return the name, or the name with a number."""
    path, number, found = Path(name), 2, name
    while found in taken:
        found, number = f"{path.stem} ({number}){path.suffix}", number + 1
    return found


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
