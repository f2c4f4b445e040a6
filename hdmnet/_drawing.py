"""Pictures of masks, of label maps and of heat maps."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hdmnet._files import write_whole
from hdmnet.images import ImageLike, load_image
from hdmnet.nn._checks import check_probabilities
from hdmnet.preprocess import IGNORE

_INFERNO = (
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
"""Matplotlib's colour map (CC0) at 0, 1/8 … 1: its lightness grows evenly."""


def query_pixels(image: ImageLike, mask: Tensor) -> Tensor:
    """Load the image (3, H, W) that a mask (H, W) belongs to.

    Raises:
        ValueError: If their sizes differ.
    """
    pixels = load_image(image).cpu()
    if pixels.shape[-2:] != mask.shape:
        raise ValueError(
            f"the image is {tuple(pixels.shape[-2:])} (H, W) but the mask is "
            f"{tuple(mask.shape)}: pass the query itself"
        )
    return pixels


def tint(pixels: Tensor, mask: Tensor, color: Sequence[int], opacity: float) -> Tensor:
    """Tint and outline the mask (H, W) in the image (3, H, W). The opacity is in [0, 1]."""
    check_probabilities(opacity=opacity)
    shown = mask[None].float()
    width = 1 + max(mask.shape) // 400
    eroded = -F.max_pool2d(-shown, 2 * width + 1, stride=1, padding=width)
    weight = torch.where(shown > eroded, 1.0, opacity * shown)
    return pixels + weight * (torch.tensor(color).view(3, 1, 1) / 255 - pixels)


def to_pil(pixels: Tensor) -> Image.Image:
    """Turn (3, H, W) in [0, 1] into a picture."""
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def heat(values: Tensor) -> Tensor:
    """Colour a map (H, W): its lowest value black, its highest pale yellow. Returns (3, H, W)."""
    low, high = values.min(), values.max()
    place = (values - low) / (high - low).clamp(min=1e-12) * (len(_INFERNO) - 1)
    below = place.long().clamp(max=len(_INFERNO) - 2)
    colors, above = torch.tensor(_INFERNO) / 255, (place - below)[..., None]
    return torch.lerp(colors[below], colors[below + 1], above).permute(2, 0, 1)


def draw_labels(
    image: ImageLike, labels: Tensor, names: Sequence[str], opacity: float
) -> Image.Image:
    """Draw a label map (H, W) on its image, with a legend of the classes that it shows.

    Args:
        image: The query itself.
        labels: 0 = background, i = `names[i - 1]`.
        names: The classes.
        opacity: Opacity of the tint, in [0, 1].

    Raises:
        ValueError: If the image does not have the size of the labels.
    """
    pixels = query_pixels(image, labels)
    palette = _voc_palette(len(names) + 1)
    shown = [i for i in range(1, len(names) + 1) if (labels == i).any()]
    for i in shown:
        pixels = tint(pixels, labels == i, palette[i], opacity)
    picture = to_pil(pixels)
    _draw_legend(picture, [(names[i - 1], palette[i]) for i in shown])
    return picture


def _draw_legend(picture: Image.Image, entries: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Write the name of each class beside its colour, in the upper left corner."""
    if not entries:
        return
    height = max(10, min(picture.size) // 24)
    font, draw = ImageFont.load_default(height), ImageDraw.Draw(picture)
    row, gap = round(1.5 * height), height // 2
    longest = max(draw.textlength(name, font) for name, _ in entries)
    size = (round(longest) + height + 3 * gap, row * len(entries) + gap)
    draw.rectangle((0, 0, *size), fill=(255, 255, 255))
    for i, (name, color) in enumerate(entries):
        top = i * row + gap
        draw.rectangle((gap, top, gap + height, top + height), fill=tuple(color))
        draw.text((height + 2 * gap, top + height / 2), name, (0, 0, 0), font, anchor="lm")


def _voc_palette(count: int) -> list[tuple[int, int, int]]:
    """Colours of PASCAL VOC: bits 0, 3, 6 … of the label give red from the highest bit down.

    Bits 1, 4, 7 … give green, and bits 2, 5, 8 … blue.
    """
    labels = np.arange(count)
    colors: NDArray[np.int64] = np.zeros((count, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (labels >> (3 * bit + channel) & 1) << (7 - bit)
    return [(r, g, b) for r, g, b in colors.tolist()]


def save_labels(labels: Tensor, classes: int, path: str | os.PathLike[str]) -> None:
    """Write a label map (H, W) as a palette PNG, with the colours of PASCAL VOC.

    Raises:
        ValueError: If `path` does not end in .png, or there are more than 254 classes: 255 means
            "ignore" in such files.
        FileNotFoundError: If the folder of `path` does not exist.
    """
    if classes >= IGNORE:
        raise ValueError(
            f"a palette image holds at most {IGNORE - 1} classes, got {classes}: save each class "
            "alone, with its own save(path)"
        )
    picture = Image.fromarray(labels.byte().numpy())
    picture.putpalette([value for color in _voc_palette(256) for value in color])
    save_png(picture, path)


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture atomically.

    Raises:
        ValueError: If `path` does not end in .png.
        FileNotFoundError: If the folder of `path` does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"masks are saved as PNG: give a path that ends in .png, not {path}")
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))
