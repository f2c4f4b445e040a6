"""Masks made of cheap annotations: the model segments the annotated image with itself.

    p = model(query = image, support = image, mask = first guess)
    mask = p > θ, corrected where the annotation says more

The first guess is the inside of the box, or squares around the positive pixels. The threshold θ is
0.5, or 0.3 if the squares cover little, because they have to grow. Nothing is trained for this. The
page docs/annotations.md compares it with other methods.

The border of such a mask is not exact. So the backbone also sees a margin around it, which does not
count as object: `with_margin`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.annotations import UNKNOWN
from hdmnet.preprocess import SEEN, resize_label, resize_scores

THRESHOLD = 0.5
SMALL, GROWING = 0.08, 0.3  # a first guess below this part of the image has a lower threshold
REACH = 0.1  # of a positive pixel in the first guess, in heights and widths of the image
SURE = 0.02  # of a positive or negative pixel in every guess
LEAST = 0.002  # of the image: an answer that is smaller has lost the object
MARGIN = 0.03  # around the mask, in heights and widths of the image


class Guess:
    """A guess of the object, and the mask that an answer to it gives.

    Args:
        seeds: (H, W) uint8, as `Box.seeds` and its like draw them: 1 = object, 0 = background,
            255 = unknown.
        size: Height and width S of the images that the model sees.

    Attributes:
        first: The guess, (S, S) in {0, 1}.
    """

    def __init__(self, seeds: Tensor, size: int) -> None:
        self._seeds = seeds
        if (seeds == 1).any():
            self._sure = _around(seeds == 1, size, SURE)
            self._possible = (1 - _around(seeds == 0, size, SURE)).maximum(self._sure)
            self.first = _around(seeds == 1, size, REACH) * self._possible
        else:
            self.first = self._possible = resize_label((seeds == UNKNOWN).byte(), (size, size))
            self._sure = torch.zeros_like(self.first)
        grows = self._sure.any() and self.first.mean() < SMALL
        self._threshold = GROWING if grows else THRESHOLD

    def mask(self, probability: Tensor) -> Tensor:
        """Make the mask (H, W) uint8: 1 = object, 0 = background. It is not empty.

        Args:
            probability: (S, S), of the object, that the model gives for the guess.
        """
        probability = probability * self._possible
        if (probability > self._threshold).float().mean() < LEAST:
            probability = probability.maximum(self.first)
        probability = probability.maximum(self._sure)[None, None]
        height, width = self._seeds.shape
        large = resize_scores(probability, (height, width))[0, 0]
        mask = (large > self._threshold).byte().where(self._seeds == UNKNOWN, self._seeds)
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
