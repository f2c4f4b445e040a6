"""Transforms from images and labels of any size to the tensors of `HDMNet.forward`, and back."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.nn._resize import upsample
from hdmnet.nn.backbone import normalise
from hdmnet.preprocess import IGNORE, resize_image, resize_label, resize_scores

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError(
        "hdmnet.data needs: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
    ) from error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TRIES = 10
"""To draw an augmentation that keeps the object."""


class Transform(Protocol):
    """Changes the images of an episode together with their labels.

    Images are (3, H, W) float32 RGB, in [0, 1] before and normalised after. Labels are (H, W)
    uint8, 255 = ignore; in the first one, 1 = object.
    """

    def query(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """Transform a query and its labels, and return both in this order."""

    def support(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """Transform a support and its masks, and return both in this order."""


class TrainTransform:
    """Augments images and labels for training, to `size` × `size`.

    Scales, rotates, blurs and mirrors at random, then crops a random window. Outside the image, the
    window has the mean colour and the label 255. If the first label has an object, the window holds
    a part of it, because an episode without an object teaches nothing. What turns a small object
    out of the image is drawn again, up to ten times.

    Args:
        size: Side of the window in pixels: 473 on PASCAL-5i, 633 on COCO-20i.
        mean: Mean of R, G, B in [0, 1], for normalisation: a model's `backbone.mean`.
        std: Standard deviation of R, G, B: a model's `backbone.std`.
        scale: Smallest and largest factor of the image's size.
        rotation: Largest angle in degrees, in both directions.
        blur: Probability of a 5 × 5 Gaussian blur.
        flip: Probability of mirroring left and right.

    Example:
        >>> transform = TrainTransform(473, mean=model.backbone.mean, std=model.backbone.std)
        >>> image, mask = transform.query(image, mask)

    Source: PFENet (arXiv 2008.01449), section 4.1, for mirroring, rotation and crops; BAM and
    HDMNet follow it. The papers leave the rest open, and it is this project's own choice: that
    every image is rotated, the range of scales, the blur, and that the window holds a part of the
    object.
    """

    def __init__(
        self,
        size: int,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: tuple[float, float] = (0.9, 1.1),
        rotation: float = 10.0,
        blur: float = 0.5,
        flip: float = 0.5,
    ) -> None:
        fill: dict[Any, Any] = {tv_tensors.Image: list(mean), tv_tensors.Mask: IGNORE}
        self._transform = v2.Compose(
            [
                _RandomScale(scale),
                v2.RandomRotation(rotation, v2.InterpolationMode.BILINEAR, fill=fill),
                v2.RandomApply([v2.GaussianBlur(5)], blur),
                v2.RandomHorizontalFlip(flip),
                _RandomWindow(size, fill),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    def query(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """See `Transform`."""
        for _ in range(TRIES):
            out = self._transform(tv_tensors.Image(image), *map(tv_tensors.Mask, labels))
            if not labels or (out[1] == 1).any() or not (labels[0] == 1).any():
                break
        return tuple(x.as_subclass(Tensor) for x in (out if labels else (out,)))

    support = query


class EvalTransform:
    """Resizes images for testing to `size` × `size`, and scores back to the query's own size.

    The labels of a query stay at its own size, because the papers score there.

    Args:
        size: Side in pixels: a model's `image_size`.
        mean: As for `TrainTransform`.
        std: As for `TrainTransform`.
        keep_ratio: True: the longer side becomes `size` and the rest is padded with black, as in
            PFENet (arXiv 2008.01449), section 4.1. False: both sides become `size`, as in
            `HDMNet.predict`.

    Example:
        >>> transform = EvalTransform(473, mean=model.backbone.mean, std=model.backbone.std)
        >>> query, target = transform.query(image, mask)
    """

    def __init__(
        self,
        size: int,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        keep_ratio: bool = True,
    ) -> None:
        self.size = size
        self._mean, self._std = list(mean), list(std)
        self._keep_ratio = keep_ratio

    def query(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """See `Transform`. The labels are not changed."""
        inner = self._inner(image.shape[-2:])
        padded = self._pad(resize_image(image, inner), 0)
        return normalise(padded, self._mean, self._std), *labels

    def support(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """See `Transform`.

        Masks are resized by nearest neighbour, and an object keeps at least one pixel.
        """
        (resized,) = self.query(image)
        inner = self._inner(image.shape[-2:])
        masks = [resize_label(label, inner).to(label.dtype) for label in labels]
        return resized, *(self._pad(mask, IGNORE) for mask in masks)

    def restore(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        """Resize scores to the query's own size.

        Args:
            scores: (B, C, `size`, `size`), such as `HDMNetOutput.final`.
            size: (H, W) of the query.

        Returns:
            (B, C, H, W).
        """
        if not self._keep_ratio:
            return resize_scores(scores, size)
        longer = max(size)
        return upsample(scores, (longer, longer), align_corners=True)[..., : size[0], : size[1]]

    def _inner(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of an image (H, W) after resizing, before padding."""
        if not self._keep_ratio:
            return self.size, self.size
        height, width = (max(round(side * self.size / max(size)), 1) for side in size)
        return height, width

    def _pad(self, x: Tensor, value: float) -> Tensor:
        return F.pad(x, (0, self.size - x.shape[-1], 0, self.size - x.shape[-2]), value=value)


class _RandomScale(v2.Transform):
    """Resizes by a random factor."""

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self._scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size."""
        factor = torch.empty(()).uniform_(*self._scale).item()
        height, width = v2.functional.get_size(flat_inputs[0])
        return {"size": [max(round(height * factor), 1), max(round(width * factor), 1)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize; masks by nearest neighbour."""
        return v2.functional.resize(inpt, **params)


class _RandomWindow(v2.Transform):
    """Crops a random window that holds a random pixel of the object. Pads smaller images."""

    def __init__(self, size: int, fill: dict[Any, Any]) -> None:
        super().__init__()
        self._size, self._fill = size, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window's top and left."""
        height, width = v2.functional.get_size(flat_inputs[0])
        pad = [max(self._size - width, 0), max(self._size - height, 0)]
        pixel = None
        if len(flat_inputs) > 1 and len(found := (flat_inputs[1] == 1).nonzero()):
            pixel = found[_draw(0, len(found) - 1)].tolist()
        top, left = (
            _draw(
                0 if at is None else max(at - self._size + 1, 0),
                length - self._size if at is None else min(at, length - self._size),
            )
            for at, length in zip(
                pixel or (None, None),
                (max(height, self._size), max(width, self._size)),
                strict=True,
            )
        )
        return {"padding": [0, 0, *pad], "top": top, "left": left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad at the right and below, then crop."""
        padded = v2.functional.pad(inpt, params["padding"], fill=self._fill[type(inpt)])
        window = (params["top"], params["left"], self._size, self._size)
        return v2.functional.crop(padded, *window)


def _draw(low: int, high: int) -> int:
    """Draw a random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))
