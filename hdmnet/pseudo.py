"""Masks made of cheap annotations: the model segments the annotated image with itself.

    p_t = model(query = image, support = image, mask = g_{t-1})
    g_t = p_t > 1/2, corrected where the annotation says more

The first guess g_0 is the inside of the box, or a square around every positive pixel. Nothing is
trained for this. [docs/predict.md](docs/predict.md) compares it with other methods.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.annotations import UNKNOWN
from hdmnet.preprocess import resize_label, resize_scores

ROUNDS = 2
REACH = 0.1  # of a positive pixel in the first guess, in heights and widths of the image
SURE = 0.02  # of a positive or negative pixel, always
LEAST = 0.0025  # of the image, below which a guess lost the object


def make_mask(segment: Callable[[Tensor], Tensor], seeds: Tensor, size: int) -> Tensor:
    """Make a mask of what an annotation says.

    Args:
        segment: From a guess (S, S) in {0, 1} to the probability (S, S) of the object, with the
            annotated image as query and as support.
        seeds: (H, W) uint8, as a `Box`, `Points` or `Scribble` draws them: 1 = object,
            0 = background, 255 = unknown.
        size: Height and width S of the images that the model sees.

    Returns:
        (H, W) uint8: 1 = object, 0 = background. It is not empty.
    """
    if (seeds == 1).any():
        sure = _around(seeds == 1, size, SURE)
        possible = (1 - _around(seeds == 0, size, SURE)).maximum(sure)
        guess = first = _around(seeds == 1, size, REACH) * possible
    else:
        guess = first = possible = resize_label((seeds == UNKNOWN).byte(), (size, size))
        sure = torch.zeros_like(first)
    for _ in range(ROUNDS):
        probability = (segment(guess) * possible).maximum(sure)
        if (probability > 0.5).float().mean() < LEAST:
            probability = probability.maximum(first)
        guess = (probability > 0.5).float()
    height, width = seeds.shape
    mask = (resize_scores(probability[None, None], (height, width))[0, 0] > 0.5).to(torch.uint8)
    mask = mask.where(seeds == UNKNOWN, seeds)
    return mask if mask.any() else (seeds == UNKNOWN).to(torch.uint8)  # a tiny box: fill it


def _around(pixels: Tensor, size: int, reach: float) -> Tensor:
    """Draw (size, size) squares in {0, 1} around pixels (H, W) that are true."""
    drawn = F.adaptive_max_pool2d(pixels[None].float(), (size, size))
    radius = round(reach * size)
    return F.max_pool2d(drawn, 2 * radius + 1, stride=1, padding=radius)[0]
