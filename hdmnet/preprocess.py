"""Resizing of images, labels and scores: the same for `predict` and for `hdmnet.data`."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from hdmnet.nn._resize import nearest, widen_small

IGNORE = 255
"""The label of pixels that take part in nothing: no loss, no score, no support."""
SEEN = 2
"""The label of pixels that the backbone sees, although they do not belong to the object."""


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image (3, H, W) bilinearly, with antialiasing, to `size` = (h, w)."""
    return F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a label (H, W) of 0, 1 and 255 by nearest neighbour to `size` = (h, w).

    An object that lies between the samples keeps the pixels that it touches.

    Returns:
        (h, w) float32.
    """
    label = label[None, None].float()
    label = label.where(widen_small((label == 1).float(), size) == 0, 1)
    return nearest(label, size)[0, 0]


def resize_scores(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resize scores (B, C, h, w) bilinearly to the query's own `size` = (H, W)."""
    return F.interpolate(scores, tuple(size), mode="bilinear")
