"""Masks made of cheap annotations: the model segments the annotated image with itself.

    p_t = model(query = image, support = image, mask = g_{t-1})
    g_t = p_t > θ, corrected where the annotation says more

The first guess g_0 is the inside of the box, or squares around the positive pixels. The threshold θ
is 0.5, or 0.3 if the squares cover little, because they have to grow. Nothing is trained for this.
The page docs/annotations.md compares it with other methods.

The border of such a mask is not exact. So the backbone also sees a margin around it, which does not
count as object: `with_margin`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.annotations import UNKNOWN
from hdmnet.preprocess import SEEN, resize_label, resize_scores

ROUNDS = 2
THRESHOLD = 0.5
SMALL, GROWING = 0.08, 0.3  # a first guess below this part of the image has a lower threshold
REACH = 0.1  # of a positive pixel in the first guess, in heights and widths of the image
SURE = 0.02  # of a positive or negative pixel in every guess
LEAST = 0.002  # of the image: an answer that is smaller has lost the object
MARGIN = 0.05  # around the mask, in heights and widths of the image


class Guess:
    """A guess of the object that gets better from round to round.

    Args:
        seeds: (H, W) uint8, as `Box.seeds` and its like draw them: 1 = object, 0 = background,
            255 = unknown.
        size: Height and width S of the images that the model sees.
    """

    def __init__(self, seeds: Tensor, size: int) -> None:
        self._seeds = seeds
        if (seeds == 1).any():
            self._sure = _around(seeds == 1, size, SURE)
            self._possible = (1 - _around(seeds == 0, size, SURE)).maximum(self._sure)
            self._first = _around(seeds == 1, size, REACH) * self._possible
        else:
            self._first = self._possible = resize_label((seeds == UNKNOWN).byte(), (size, size))
            self._sure = torch.zeros_like(self._first)
        grows = self._sure.any() and self._first.mean() < SMALL
        self._threshold = GROWING if grows else THRESHOLD
        self._probability = self._first

    def rounds(self) -> Iterator[Tensor]:
        """Yield the guess (S, S) in {0, 1} of each round. Call `update` before the next."""
        for _ in range(ROUNDS):
            yield (self._probability > self._threshold).float()

    def update(self, probability: Tensor) -> None:
        """Take the probability (S, S) of the object that the model gives for the last guess."""
        probability = probability * self._possible
        if (probability > self._threshold).float().mean() < LEAST:
            probability = probability.maximum(self._first)
        self._probability = probability.maximum(self._sure)

    def mask(self) -> Tensor:
        """Return the mask (H, W) uint8: 1 = object, 0 = background. It is not empty."""
        height, width = self._seeds.shape
        probability = resize_scores(self._probability[None, None], (height, width))[0, 0]
        mask = (probability > self._threshold).byte().where(self._seeds == UNKNOWN, self._seeds)
        return mask if mask.any() else (self._seeds == UNKNOWN).byte()  # a tiny box: fill it


def with_margin(mask: Tensor, seeds: Tensor) -> Tensor:
    """Label the margin of a mask as `SEEN`, but nothing that is surely background.

    Args:
        mask: (S, S), 1 = object, 0 = background, for the model.
        seeds: (H, W) of the annotation, as for `Guess`.
    """
    size = (mask.shape[0], mask.shape[1])
    possible = resize_label((seeds != 0).byte(), size).to(mask.device)
    margin = _around(mask == 1, mask.shape[0], MARGIN) * possible
    return mask.where((mask == 1) | (margin == 0), SEEN)


def _around(pixels: Tensor, size: int, reach: float) -> Tensor:
    """Draw squares (size, size) in {0, 1} around the pixels (H, W) that are true."""
    drawn = F.adaptive_max_pool2d(pixels[None].float(), (size, size))
    radius = round(reach * size)
    return F.max_pool2d(drawn, 2 * radius + 1, stride=1, padding=radius)[0]
