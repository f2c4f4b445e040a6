"""The answer to one query: probabilities, labels, pictures, files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hdmnet._drawing import draw_labels, query_pixels, save_labels, save_png, tint, to_pil
from hdmnet.explanation import Evidence, Explanation
from hdmnet.images import ImageLike
from hdmnet.nn.presence import SURE, object_probability
from hdmnet.preprocess import resize_scores

THRESHOLD = 0.5
"""A pixel shows an object if its probability is above this."""


class Instance(NamedTuple):
    """One connected part of a mask."""

    mask: Tensor
    """(H, W) bool."""
    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1) in pixels of the query; x1 and y1 are exclusive."""
    score: float
    """Mean probability of its pixels, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one query, on the CPU."""

    probability: Tensor
    """(H, W) float32 in [0, 1], at the query's own size."""
    _presence: float | None = None
    _evidence: Evidence | None = None
    _doubt: Tensor | None = None

    @classmethod
    def from_scores(
        cls,
        scores: Tensor,
        size: Sequence[int],
        presence: float | None = None,
        evidence: Evidence | None = None,
        doubt: Tensor | None = None,
    ) -> Self:
        """Turn the scores of one query into probabilities at its own size.

        p = f / (b + f), with the scores b of the background and f of the object, clamped at 0.

        Args:
            scores: (1, 2, h, w) scores, background first.
            size: Height and width of the query.
            presence: What `presence` returns.
            evidence: What `explain` shows.
            doubt: (1, h', w'), at most 0: what `lowered` adds to the logits.
        """
        probability = object_probability(resize_scores(scores.float(), size))[0]
        doubt = None if doubt is None else doubt[0].float().cpu()
        return cls(probability.cpu(), presence, evidence, doubt)

    @property
    def presence(self) -> float:
        """The probability, in [0, 1], that the query shows any of the class.

        The answer of a network without such an estimate has its highest probability of a pixel.
        """
        return self.probability.max().item() if self._presence is None else self._presence

    def emptied_below(self, presence: float) -> Self:
        """Return an answer without any object if `presence` is below this value."""
        if self.presence >= presence:
            return self
        return replace(self, probability=torch.zeros_like(self.probability))

    def lowered(self) -> Self:
        """Return an answer with lower probabilities where what was found looks unlike the class.

        odds(p') = odds(p) · exp(Δ), with Δ ≤ 0 of `Presence.doubt`, which is 0 where nothing
        speaks against the class. `predict` does this by default. The answer of a network without
        such an estimate stays as it is.
        """
        if self._doubt is None:
            return self
        height, width = self.probability.shape
        change = resize_scores(self._doubt[None, None], (height, width))[0, 0]
        factor = change.clamp(max=0).exp()
        p = self.probability.clamp(max=1 - SURE)  # 1 would stay 1, whatever the factor is
        lower = p * factor / (1 - p * (1 - factor))
        probability = lower.where(factor < 1, self.probability)
        return replace(self, probability=probability, _doubt=None)

    @property
    def mask(self) -> Tensor:
        """(H, W) bool: probability > 0.5."""
        return self.probability > THRESHOLD

    def instances(self, *, min_area: int = 1) -> list[Instance]:
        """Split the mask into its connected parts, largest first.

        Pixels that touch at a side or a corner belong to the same part. Two objects that touch are
        one part.

        Args:
            min_area: Pixels of the smallest part that is kept.

        Raises:
            ImportError: If scipy, of `hdmnet[eval]`, is not installed.

        Example:
            >>> [part.box for part in result.instances(min_area=100)]
        """
        ndimage = _import("scipy.ndimage", "instances")
        parts, _ = ndimage.label(self.mask.numpy(), structure=np.ones((3, 3)))
        areas = np.bincount(parts.ravel())
        found = []
        for number, window in enumerate(ndimage.find_objects(parts), start=1):
            if areas[number] < min_area:
                continue
            mask = torch.from_numpy(parts == number)
            rows, columns = window
            box = (columns.start, rows.start, columns.stop, rows.stop)
            found.append(Instance(mask, box, self.probability[mask].mean().item()))
        return sorted(found, key=lambda part: -int(part.mask.sum()))

    def explain(self) -> Explanation:
        """Show what the answer rests on: the correlation maps and the priors, over the query.

        Raises:
            ValueError: If the answer is not from `predict`, or its network has no such maps.

        Example:
            >>> result.explain().picture().save("why.png")
        """
        return Explanation.of(self._evidence, self.mask)

    def overlay(
        self,
        image: ImageLike,
        *,
        color: tuple[int, int, int] = (255, 80, 0),
        opacity: float = 0.5,
    ) -> Image.Image:
        """Draw the mask on the query, tinted and outlined.

        Args:
            image: The query itself.
            color: R, G, B in 0 … 255.
            opacity: Opacity of the tint, in [0, 1].

        Raises:
            ValueError: If the image does not have the size of the mask.

        Example:
            >>> result.overlay("query.jpg").save("overlay.png")
        """
        pixels = query_pixels(image, self.mask)
        return to_pil(tint(pixels, self.mask, color, opacity))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a PNG file: 255 = object, 0 = background.

        Raises:
            ValueError: If `path` does not end in .png.
            FileNotFoundError: If the folder of `path` does not exist.

        Example:
            >>> result.save("mask.png")
        """
        save_png(Image.fromarray(self.mask.byte().mul(255).numpy()), path)

    def to_coco(self, *, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """Return the mask in COCO's format of results. An empty mask gives an empty list.

        Args:
            image_id: The query's number in the data set.
            category_id: The class's number in the data set.

        Returns:
            A dict of `image_id`, `category_id`, `segmentation` (run lengths, `counts` as str) and
            `score`, the mean probability of the mask's pixels. `json.dump` can write it.

        Raises:
            ImportError: If pycocotools, of `hdmnet[eval]`, is not installed.
        """
        if not self.mask.any():
            return []
        coco = _import("pycocotools.mask", "to_coco")
        encoded = coco.encode(np.asfortranarray(self.mask.numpy().astype(np.uint8)))
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": {
                    "size": list(encoded["size"]),
                    "counts": encoded["counts"].decode("ascii"),
                },
                "score": self.probability[self.mask].mean().item(),
            }
        ]

    def to_transformers(self) -> dict[str, Any]:
        """Return the mask as transformers' `post_process_panoptic_segmentation` does.

        Returns:
            `segmentation`, (H, W) int64: 0 = background, 1 = the object; and `segments_info`, a
            list of a dict of `id` (1), `label_id` (1) and `score`, empty if the mask is empty.
            `supervision.Detections.from_transformers` reads it.
        """
        return _to_transformers(self.mask.long(), {1: self})


@dataclass(frozen=True, eq=False)
class MulticlassSegmentation:
    """The answer to one query that several classes were asked of, on the CPU."""

    names: tuple[str, ...]
    """The N classes, in the order given."""
    probability: Tensor
    """(N, H, W) float32 in [0, 1], at the query's own size."""
    _alone: tuple[Segmentation, ...] = ()

    @classmethod
    def from_answers(cls, answers: Mapping[str, Segmentation]) -> Self:
        """Join the answers of several classes to the same query."""
        probability = torch.stack([x.probability for x in answers.values()])
        # The answers share the memory of `probability`.
        pairs = zip(answers.values(), probability, strict=True)
        return cls(tuple(answers), probability, tuple(replace(x, probability=p) for x, p in pairs))

    @property
    def presence(self) -> Tensor:
        """(N,) float32 in [0, 1]: `Segmentation.presence` of each class."""
        return torch.tensor([self[name].presence for name in self.names])

    @property
    def labels(self) -> Tensor:
        """(H, W) int64: i = `names[i - 1]`, the most probable class, and 0 = background.

        A pixel is background if no class has a probability above 0.5.
        """
        best, index = self.probability.max(dim=0)
        return torch.where(best > THRESHOLD, index + 1, 0)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, as through the keys of a dict."""
        return iter(self.names)

    def __getitem__(self, name: str) -> Segmentation:
        """Return the answer for one class. Its mask may overlap with those of other classes.

        Raises:
            KeyError: If no such class was asked for.
        """
        if name not in self.names:
            raise KeyError(f"{name!r} was not asked for: expected one of {', '.join(self.names)}")
        i = self.names.index(name)
        return self._alone[i] if self._alone else Segmentation(self.probability[i])

    def overlay(self, image: ImageLike, *, opacity: float = 0.5) -> Image.Image:
        """Draw the labels on the query, a colour for each class, with a legend of those shown.

        The colours are those of PASCAL VOC, and of `save`.

        Args:
            image: The query itself.
            opacity: Opacity of the tint, in [0, 1].

        Raises:
            ValueError: If the image does not have the size of the labels.

        Example:
            >>> many.overlay("query.jpg").save("overlay.png")
        """
        return draw_labels(image, self.labels, self.names, opacity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as a palette PNG, with the colours of PASCAL VOC.

        Raises:
            ValueError: If `path` does not end in .png, or there are more than 254 classes: 255
                means "ignore" in such files.
            FileNotFoundError: If the folder of `path` does not exist.

        Example:
            >>> many.save("labels.png")
        """
        save_labels(self.labels, len(self.names), path)

    def to_coco(
        self, *, image_id: int = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the labels in COCO's format of results: a dict for each class shown.

        Args:
            image_id: The query's number in the data set.
            category_ids: The number of each class in the data set. None: its number in `labels`.

        Returns:
            As `Segmentation.to_coco`, without overlaps.

        Raises:
            ImportError: If pycocotools, of `hdmnet[eval]`, is not installed.
            ValueError: If `category_ids` lacks a class.
        """
        numbers = dict(zip(self.names, range(1, len(self.names) + 1), strict=True))
        numbers = numbers if category_ids is None else dict(category_ids)
        if lacking := [name for name in self.names if name not in numbers]:
            raise ValueError(f"category_ids has no number for {', '.join(lacking)}: give one")
        return [
            result
            for name, only in self.without_overlaps().items()
            for result in only.to_coco(image_id=image_id, category_id=numbers[name])
        ]

    def to_transformers(self) -> dict[str, Any]:
        """Return the labels as transformers' `post_process_panoptic_segmentation` does.

        Returns:
            `segmentation`, which is `labels`; and `segments_info`, a dict for each class shown, of
            `id` and `label_id` (both the number in `labels`) and `score`, the mean probability of
            its pixels. `supervision.Detections.from_transformers` reads it.
        """
        return _to_transformers(self.labels, dict(enumerate(self.without_overlaps().values(), 1)))

    def without_overlaps(self) -> dict[str, Segmentation]:
        """Return each class with the pixels of `labels` that are its own, and 0 elsewhere."""
        labels = self.labels
        return {
            name: replace(self[name], probability=self.probability[i].where(labels == i + 1, 0))
            for i, name in enumerate(self.names)
        }


def _to_transformers(labels: Tensor, parts: Mapping[int, Segmentation]) -> dict[str, Any]:
    info = [
        {"id": i, "label_id": i, "score": part.probability[part.mask].mean().item()}
        for i, part in parts.items()
        if part.mask.any()
    ]
    return {"segmentation": labels, "segments_info": info}


def _import(module: str, user: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        raise ImportError(
            f"{user} needs {name}: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
        ) from error
