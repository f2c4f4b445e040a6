"""From images and labels of any size to the tensors that `HDMNet.forward` takes, and back."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet._ops import upsample
from hdmnet.losses import IGNORE
from hdmnet.prediction import resize_label

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError("hdmnet.data needs: pip install 'hdmnet[eval]'") from error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Transform(Protocol):
    """What is done to the images of an episode and to their labels alike.

    Images are (3, H, W) float32 RGB in [0, 1], and leave normalised; labels are (H, W) uint8, where
    255 is ignored and, in the first, 1 is the object.
    """

    def query(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """A query and its labels."""

    def support(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """A support and its masks."""


class TrainTransform:
    """The augmentation of training, on image and labels alike: all leave as `size` × `size`.

    Scale, rotation, blur and mirroring at random, then a random window; beyond the image it has the
    mean colour and the label 255. The window holds a part of the object, if there is one: an
    episode without would teach nothing.

    Args:
        size: Side of the window in pixels: 473 on PASCAL-5i, 633 on COCO-20i.
        mean: Of the normalisation, R, G, B in [0, 1]; a model's `backbone.mean`.
        std: Likewise, `backbone.std`.
        scale: Range of the factor of the size.
        rotation: Largest angle in degrees, to either side.
        blur: Probability of a Gaussian blur of 5 × 5.
        flip: Probability of mirroring left and right.

    Source: mirroring, rotation and crops are those of PFENet (arXiv 2008.01449), section 4.1, which
    BAM and HDMNet go by. What the papers leave open is this project's own: that every image is
    rotated, the range of scales, the blur, and that the window holds a part of the object.
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
        out = self._transform(tv_tensors.Image(image), *map(tv_tensors.Mask, labels))
        return tuple(x.as_subclass(Tensor) for x in (out if labels else (out,)))

    support = query


class EvalTransform:
    """What testing does: images are resized, and scores are brought back to the query's own size.

    The label of a query stays at its own size, where the papers score.

    Args:
        size: Side in pixels, a model's `image_size`.
        mean: As of `TrainTransform`.
        std: As of `TrainTransform`.
        keep_ratio: Whether the longer side becomes `size` and the rest is black, as in PFENet
            (arXiv 2008.01449), section 4.1; or both sides become `size`, as in `HDMNet.predict`.
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
        """See `Transform`; the labels are returned as they came."""
        inner = self._inner(image.shape[-2:])
        resized = F.interpolate(image[None], inner, mode="bilinear", antialias=True)[0]
        return v2.functional.normalize(self._pad(resized, 0), self._mean, self._std), *labels

    def support(self, image: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        """See `Transform`; masks are resized by nearest neighbour, and no object vanishes."""
        (resized,) = self.query(image)
        inner = self._inner(image.shape[-2:])
        masks = [resize_label(label, inner).to(label.dtype) for label in labels]
        return resized, *(self._pad(mask, IGNORE) for mask in masks)

    def restore(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        """Bring scores (B, C, `size`, `size`) to the query's own size (H, W)."""
        if not self._keep_ratio:
            return upsample(scores, size, align_corners=False)
        longer = max(size)
        return upsample(scores, (longer, longer), align_corners=True)[..., : size[0], : size[1]]

    def _inner(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that an image (H, W) gets, before padding."""
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
    """Cuts a random window that holds a random pixel of the object, padding if need be."""

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
        """Pad at the right and below, and cut."""
        padded = v2.functional.pad(inpt, params["padding"], fill=self._fill[type(inpt)])
        window = (params["top"], params["left"], self._size, self._size)
        return v2.functional.crop(padded, *window)


def _draw(low: int, high: int) -> int:
    """A random integer, both bounds included."""
    return int(torch.randint(low, high + 1, ()))
