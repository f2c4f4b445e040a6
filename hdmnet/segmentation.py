"""From people's images to masks and back."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hdmnet._files import write_whole
from hdmnet._fork import leave_parent
from hdmnet._ops import nearest, upsample, widen_small
from hdmnet.images import ImageLike, load_image, load_mask
from hdmnet.supports import SupportSet

if TYPE_CHECKING:
    from hdmnet.model import HDMNet


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one query, on the CPU."""

    probability: Tensor
    """(H, W) float32 in [0, 1], at the query's own size."""

    @property
    def mask(self) -> Tensor:
        """(H, W) bool: probability > 0.5."""
        return self.probability > 0.5

    def overlay(
        self,
        image: ImageLike,
        *,
        color: tuple[int, int, int] = (255, 80, 0),
        opacity: float = 0.5,
    ) -> Image.Image:
        """The query with the mask tinted and outlined.

        Args:
            image: The query, of the mask's size.
            color: R, G, B in 0 … 255.
            opacity: Of the tint, in [0, 1].

        Raises:
            ValueError: If the image is not of the mask's size.
        """
        pixels = load_image(image).cpu()
        if pixels.shape[-2:] != self.mask.shape:
            raise ValueError(
                f"the image is {tuple(pixels.shape[-2:])} (H, W) but the mask is "
                f"{tuple(self.mask.shape)}: pass the query itself"
            )
        mask = self.mask[None].float()
        width = 1 + max(mask.shape) // 400
        eroded = -F.max_pool2d(-mask, 2 * width + 1, stride=1, padding=width)
        weight = torch.where(mask > eroded, 1.0, opacity * mask)
        tint = torch.tensor(color).view(3, 1, 1) / 255
        blended = pixels + weight * (tint - pixels)
        return Image.fromarray((blended * 255).round().byte().permute(1, 2, 0).numpy())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a PNG file: 255 = object, 0 = background; `load_mask` reads it back.

        Raises:
            ValueError: If `path` does not end in .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"masks are saved as PNG: give a path that ends in .png, not {path}")
        image = Image.fromarray(self.mask.byte().mul(255).numpy())
        write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


def encode_supports(
    model: "HDMNet",
    supports: ImageLike | Sequence[ImageLike],
    masks: ImageLike | Sequence[ImageLike],
) -> SupportSet:
    """Encode one class, see `HDMNet.encode_supports`."""
    leave_parent()
    images, mask_list = _as_list(supports), _as_list(masks)
    if len(images) != len(mask_list) or not images:
        raise ValueError(
            f"got {len(images)} supports and {len(mask_list)} masks: expected one mask for each "
            "support, and at least one support"
        )
    tensors = [load_image(image) for image in images]
    labels = [
        load_mask(mask, (image.shape[-2], image.shape[-1]))
        for mask, image in zip(mask_list, tensors, strict=True)
    ]
    size = (model.image_size, model.image_size)
    batch = torch.stack([_prepare(model, image) for image in tensors])
    mask = torch.stack([resize_label(label, size) for label in labels])
    with evaluating(model):
        encoded = model.encode(batch[None], mask[None].to(batch.device))
    return replace(encoded, fingerprint=model.fingerprint())


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) of 0, 1 and 255 → (h, w), by nearest neighbour; a small object keeps a pixel."""
    label = label[None, None].float()
    label = label.where(widen_small((label == 1).float(), size) == 0, 1)
    return nearest(label, size)[0, 0]


def predict(
    model: "HDMNet",
    query: ImageLike | Sequence[ImageLike],
    supports: ImageLike | Sequence[ImageLike] | SupportSet,
    masks: ImageLike | Sequence[ImageLike] | None = None,
) -> Segmentation | list[Segmentation]:
    """Segment one image or a list of images, see `HDMNet.predict`."""
    leave_parent()
    if isinstance(supports, SupportSet):
        if masks is not None:
            raise ValueError("an encoded SupportSet holds its masks: leave masks out")
        support_set = supports
    elif masks is None:
        raise ValueError("masks is missing: give one mask for each support")
    else:
        support_set = encode_supports(model, supports, masks)
    if not isinstance(query, list | tuple):
        return _segment(model, cast(ImageLike, query), support_set)
    return [_segment(model, image, support_set) for image in query]


def _segment(model: "HDMNet", query: ImageLike, supports: SupportSet) -> Segmentation:
    image = load_image(query)
    with evaluating(model):
        final = model.scores(_prepare(model, image)[None], supports)
        scores = upsample(final.float(), image.shape[-2:], align_corners=False)[0].clamp(min=0)
        background, foreground = scores
        probability = foreground / (background + foreground).clamp(min=1e-12)
    # A clone made out here is an ordinary tensor, which its owner may change.
    return Segmentation(probability.cpu().clone())


class _Process:
    """What the threads of one process share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.predicting: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}
        """Of models that predict: in how many threads, and the mode each module was found in."""


# By process, for a fork may copy a lock that a thread of the parent holds.
_PROCESSES: dict[int, _Process] = {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; when the last thread leaves, every module's own mode."""
    here = _PROCESSES.setdefault(os.getpid(), _Process())
    with here.lock:
        threads, modes = here.predicting.get(model, (0, []))
        if threads == 0:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
        here.predicting[model] = threads + 1, modes
    try:
        with torch.inference_mode():
            yield
    finally:
        with here.lock:
            threads, modes = here.predicting.pop(model)
            if threads > 1:
                here.predicting[model] = threads - 1, modes
            else:
                for module, training in modes:
                    module.training = training


def _prepare(model: "HDMNet", image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] → (3, image_size, image_size), normalised, where the model is."""
    reference = next(model.parameters())
    image = image.to(reference.device)
    size = (model.image_size, model.image_size)
    resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return model.backbone.normalise(resized).to(reference.dtype)


def _as_list(value: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    return list(value) if isinstance(value, list | tuple) else [cast(ImageLike, value)]
