"""Base classes and novel classes in one label map."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from hdmnet._drawing import draw_labels, save_labels
from hdmnet.images import ImageLike
from hdmnet.nn._resize import upsample
from hdmnet.output import Matches
from hdmnet.preprocess import resize_scores
from hdmnet.segmentation import THRESHOLD, MulticlassSegmentation


@dataclass(frozen=True, eq=False)
class GeneralizedSegmentation:
    """The answer to one query in which novel and base classes are looked for, on the CPU.

    With the probabilities p_i of N novel classes and the logits z of n base classes,

        label = n + argmax_i p_i if max_i p_i > threshold, else argmax_c z_c,

    for i = 1 … N and c = 0 … n, where 0 is the background.

    Source: BAM (arXiv 2203.07615), generalized few-shot segmentation, with several novel classes.
    """

    novel: MulticlassSegmentation
    """The novel classes. The name of a single one, not given in a dict, is "novel"."""
    base: Tensor
    """(H, W) int64: the base learner's own labels, 0 = background, c = base class c."""
    base_classes: int
    """Number of base classes n."""

    @classmethod
    def of(cls, novel: MulticlassSegmentation, match: Matches, network_size: Sequence[int]) -> Self:
        """Take the most probable base class of each pixel, at the query's own size.

        Args:
            novel: The novel classes in the query.
            match: A match of the query, N = 1.
            network_size: Height and width of the query as the network saw it.

        Raises:
            ValueError: If the network has no base learner.
        """
        if match.base is None:
            raise ValueError(
                "generalized=True needs a base learner, but this model has none (base_classes=0): "
                "leave generalized out, or use a model with base_classes"
            )
        logits = upsample(match.base.float(), network_size, align_corners=True)
        labels = resize_scores(logits, novel.probability.shape[-2:])[0].argmax(dim=0)
        return cls(novel, labels.cpu(), match.base.shape[1] - 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes by label: `names[i - 1]` is "base 1" … "base n", then the novel classes."""
        return (*(f"base {c}" for c in range(1, self.base_classes + 1)), *self.novel.names)

    @property
    def labels(self) -> Tensor:
        """(H, W) int64: `labels_above(0.5)`."""
        return self.labels_above(THRESHOLD)

    def labels_above(self, threshold: float) -> Tensor:
        """Label a pixel with a novel class only if its probability is above `threshold`.

        Args:
            threshold: In [0, 1].

        Returns:
            (H, W) int64: 0 = background, i = `names[i - 1]`.

        Raises:
            ValueError: If the threshold is out of its range.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        best, index = self.novel.probability.max(dim=0)
        return torch.where(best > threshold, self.base_classes + 1 + index, self.base)

    def overlay(self, image: ImageLike, *, opacity: float = 0.5) -> Image.Image:
        """Draw the labels on the query, as `MulticlassSegmentation.overlay` does.

        Raises:
            ValueError: If the image does not have the size of the labels.
        """
        return draw_labels(image, self.labels, self.names, opacity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as a palette PNG, as `MulticlassSegmentation.save` does.

        Raises:
            ValueError: If `path` does not end in .png, or there are more than 254 classes.
            FileNotFoundError: If the folder of `path` does not exist.
        """
        save_labels(self.labels, len(self.names), path)
