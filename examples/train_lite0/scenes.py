"""Compose scenes: paste cut-outs on photographs, with the mask of each.

All random numbers come from the given generator, so the same seed gives the same scene.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MIN_VISIBLE = 0.4
"""Share of an object's area that must be visible."""
MIN_AREA = 0.01
"""Share of the scene that every object must cover."""
MAX_CUT = 0.35
"""Share of an object's width or height that may lie outside the scene."""
MAX_ENLARGEMENT = 3.0

_SIDES = (0.2, 0.9)  # longer side of an object, as a share of the scene's side
_AREAS = (0.02, 0.5)  # area of an object, as a share of the scene
_AREA_MEDIAN, _AREA_SPREAD = 0.15, 0.8  # large: parts end up hidden or outside
_TRIES = 24
_RESAMPLE = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Scene:
    """A picture (size, size, 3) uint8, and the map of its objects.

    `instances` (size, size) uint8 is 0 on the background and i + 1 where cut-out i is visible.
    """

    image: np.ndarray
    instances: np.ndarray


def load_cutout(path: Path | str) -> Image.Image:
    """Read a cut-out into memory."""
    with Image.open(path) as image:
        return image.convert("RGBA")


def load_backgrounds(data_dir: Path | str) -> list[Image.Image]:
    """Read all backgrounds of a data folder into memory (about 0.3 GB)."""
    images = []
    for path in sorted(Path(data_dir, "backgrounds").glob("*.jpg")):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


def jitter_colours(
    rng: np.random.Generator, image: Image.Image, strength: float = 1.0
) -> Image.Image:
    """Change brightness, contrast, gamma, saturation and hue of an RGB image at random."""
    saturation = np.exp(rng.normal(0, 0.2 * strength))
    angle = np.deg2rad(rng.normal(0, 8 * strength))
    # Saturation and hue: scale and rotate the two chroma axes of YIQ.
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = np.eye(3)
    turn[1:, 1:] = saturation * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix = np.linalg.inv(to_yiq) @ turn @ to_yiq
    image = image.convert("RGB", tuple(np.c_[matrix, np.zeros(3)].ravel()))

    levels = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.2 * strength))
    levels = (levels - 0.5) * np.exp(rng.normal(0, 0.12 * strength)) + 0.5
    levels = levels * np.exp(rng.normal(0, 0.12 * strength))
    tint = np.exp(rng.normal(0, 0.04 * strength, size=(3, 1)))
    return image.point(np.clip(255 * levels * tint, 0, 255).astype(np.uint8).ravel().tolist())


def random_background(
    rng: np.random.Generator, backgrounds: Sequence[Image.Image], size: int
) -> Image.Image:
    """Crop a random square of a random background, and flip, blur and recolour it at random."""
    source = backgrounds[int(rng.integers(len(backgrounds)))]
    side = min(source.size) * rng.uniform(0.3, 1.0)
    left, top = (rng.uniform(0, length - side) for length in source.size)
    crop = source.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
        reducing_gap=2.0,
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.1:
        crop = crop.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if rng.random() < 0.3:  # out of focus
        crop = crop.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 4.0) * size / 257))
    return jitter_colours(rng, crop)


def texture_cutout(
    rng: np.random.Generator, backgrounds: Sequence[Image.Image], side: int = 240
) -> Image.Image:
    """Cut an artificial object (RGBA), a blob or a polygon, out of a random background."""
    source = backgrounds[int(rng.integers(len(backgrounds)))]
    texture = random_background(rng, [source], side)
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if rng.random() < 0.6:  # a smooth outline: a circle plus a few waves
        waves = np.arange(1, 7)
        sizes = rng.normal(0, 0.35, size=(6, 2)) / waves[:, None]
        radii = 1 + (
            sizes[:, 0] @ np.cos(np.outer(waves, angles))
            + sizes[:, 1] @ np.sin(np.outer(waves, angles))
        )
        radii = np.clip(radii, 0.25, None)
    else:  # a polygon around the centre
        angles = np.sort(rng.uniform(0, 2 * np.pi, size=rng.integers(4, 11)))
        radii = rng.uniform(0.4, 1.0, size=len(angles))
    points = np.c_[np.cos(angles), np.sin(angles)] * radii[:, None]
    points[:, 0] *= rng.uniform(0.4, 1.0)
    points -= points.min(axis=0)
    points *= 2 * side / points.max()  # twice the size gives a smooth edge
    mask = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    texture.putalpha(mask.resize((side, side), Image.Resampling.BILINEAR))
    box = texture.getchannel("A").getbbox()
    return texture.crop(box) if box else texture


def _oriented(rng: np.random.Generator, cutout: Image.Image) -> Image.Image:
    """Flip a cut-out and change its colours, at random."""
    colours = jitter_colours(rng, cutout.convert("RGB"))
    colours.putalpha(cutout.getchannel("A"))
    if rng.random() < 0.5:
        colours = colours.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return colours


def _render(
    cutout: Image.Image, *, area: float, aspect: float, angle: float, size: int
) -> Image.Image:
    """Scale, stretch and rotate a cut-out so that it covers about `area` of the scene."""
    width, height = cutout.size
    opaque = sum(cutout.getchannel("A").histogram()[128:]) or 1
    scale = np.sqrt(area * size * size / opaque)
    stretch = np.sqrt(aspect)
    longer = scale * max(width * stretch, height / stretch) / size
    scale *= np.clip(longer, *_SIDES) / longer
    scale = min(scale, MAX_ENLARGEMENT)
    target = (max(4, round(width * stretch * scale)), max(4, round(height / stretch * scale)))
    image = cutout.resize(target, _RESAMPLE, reducing_gap=2.0)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else image


def _hard(image: Image.Image) -> np.ndarray:
    """Return the mask of the pixels whose alpha is above one half."""
    return np.asarray(image.getchannel("A")) > 127


def _stamp(instances: np.ndarray, hard: np.ndarray, place: tuple[int, int], label: int) -> None:
    """Write a label into `instances` where the mask `hard`, moved to (left, top), is true."""
    size = instances.shape[0]
    left, top = place
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + hard.shape[1], size), min(top + hard.shape[0], size)
    if x0 < x1 and y0 < y1:
        part = hard[y0 - top : y1 - top, x0 - left : x1 - left]
        instances[y0:y1, x0:x1][part] = label


def _instances(
    hards: Sequence[np.ndarray], places: Sequence[tuple[int, int]], order: np.ndarray, size: int
) -> np.ndarray:
    """Paint the masks at their places, in the given order, into a map of instances."""
    instances = np.zeros((size, size), np.uint8)
    for index in order:
        _stamp(instances, hards[index], places[index], int(index) + 1)
    return instances


def _shortfall(instances: np.ndarray, hards: Sequence[np.ndarray]) -> float:
    """Return the largest 1 - visible / required of all objects; at most 0 is good enough."""
    visible = np.bincount(instances.ravel(), minlength=len(hards) + 1)[1 : len(hards) + 1]
    full = np.array([max(hard.sum(), 1) for hard in hards])
    # An object that is too small to cover MIN_AREA must be 80 % visible instead.
    least = np.maximum(MIN_VISIBLE * full, np.minimum(MIN_AREA * instances.size, 0.8 * full))
    return float((1 - visible / least).max())


def _random_places(
    rng: np.random.Generator, hards: Sequence[np.ndarray], size: int
) -> list[tuple[int, int]]:
    places = []
    for hard in hards:
        height, width = hard.shape
        margins = rng.uniform(0, MAX_CUT, size=2) * (rng.random(2) < 0.5)
        low = -margins * (width, height)
        high = np.maximum(size - (1 - margins) * (width, height), low + 1)
        left, top = rng.uniform(low, high)
        places.append((int(left), int(top)))
    return places


def _grid(
    images: Sequence[Image.Image], size: int
) -> tuple[list[Image.Image], list[tuple[int, int]]]:
    """Place each object in its own cell. `_arrange` uses this if random places fail."""
    cells = int(np.ceil(np.sqrt(len(images))))
    cell = size // cells
    fitted, places = [], []
    for index, image in enumerate(images):
        scale = min(1.0, cell / max(image.size))
        image = image.resize([max(4, round(length * scale)) for length in image.size], _RESAMPLE)
        fitted.append(image)
        row, column = divmod(index, cells)
        places.append(
            (
                column * cell + (cell - image.width) // 2,
                row * cell + (cell - image.height) // 2,
            )
        )
    return fitted, places


def _arrange(
    rng: np.random.Generator, images: list[Image.Image], size: int
) -> tuple[list[Image.Image], list[tuple[int, int]], np.ndarray]:
    """Try random places until each object is visible enough; shrink large ones on the way."""
    order = rng.permutation(len(images))
    for attempt in range(_TRIES):
        if attempt and attempt % 6 == 0:
            images = [
                image.resize([max(4, round(0.8 * length)) for length in image.size], _RESAMPLE)
                if image.width * image.height > 0.1 * size * size
                else image
                for image in images
            ]
        hards = [_hard(image) for image in images]
        places = _random_places(rng, hards, size)
        if _shortfall(_instances(hards, places, order, size), hards) <= 0:
            return images, places, order
    images, places = _grid(images, size)
    return images, places, order


def _paste(
    rng: np.random.Generator, canvas: Image.Image, image: Image.Image, left: int, top: int
) -> None:
    """Paste an object with a soft edge, adapted brightness and, at random, blur and shadow."""
    size = canvas.width
    alpha = image.getchannel("A")
    soft = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1) * size / 257))
    # The minimum of both: the edge fades inwards, and pixels outside the object stay invisible.
    weights = np.minimum(np.asarray(soft, np.float32) * 1.15, np.asarray(alpha, np.float32))
    alpha = Image.fromarray(np.clip(weights, 0, 255).astype(np.uint8))
    colours = image.convert("RGB")

    box = (max(left, 0), max(top, 0), min(left + image.width, size), min(top + image.height, size))
    behind = float(np.asarray(canvas.crop(box).convert("L")).mean())
    own = float(np.average(np.asarray(colours.convert("L")), weights=weights + 1e-3))
    gain = ((behind + 8) / (own + 8)) ** rng.uniform(0, 0.35)
    gain = float(np.clip(gain, 0.65, 1.4))
    colours = colours.point([min(255, int(gain * (level % 256))) for level in range(768)])
    if rng.random() < 0.25:
        colours = colours.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0) * size / 257))

    if rng.random() < 0.3:
        blur = rng.uniform(2, 8) * size / 257
        shift = rng.uniform(-0.08, 0.08) * image.width, rng.uniform(0, 0.08) * image.height
        pad = int(2 * blur)
        shadow = Image.new("L", (image.width + 2 * pad, image.height + 2 * pad))
        shadow.paste(alpha, (pad, pad))
        darkness = rng.uniform(0.2, 0.6)
        shadow = shadow.filter(ImageFilter.BoxBlur(blur)).point(lambda level: level * darkness)
        canvas.paste((0, 0, 0), (left - pad + int(shift[0]), top - pad + int(shift[1])), shadow)
    canvas.paste(colours, (left, top), alpha)


def _finish(rng: np.random.Generator, canvas: Image.Image) -> np.ndarray:
    """Add blur, JPEG compression and noise to the whole picture, each at random."""
    if rng.random() < 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2) * canvas.width / 257))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        canvas.save(buffer, format="JPEG", quality=int(rng.integers(40, 91)))
        canvas = Image.open(buffer)
    if rng.random() < 0.3:
        pixels = np.asarray(canvas, np.float32)
        noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1, 8))
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return np.array(canvas)


def compose(
    rng: np.random.Generator,
    cutouts: Sequence[Image.Image],
    backgrounds: Sequence[Image.Image],
    size: int,
) -> Scene:
    """Paste cut-outs (RGBA) on a random background, in random places, sizes and order.

    At least `MIN_VISIBLE` of each cut-out is visible. It covers at least `MIN_AREA` of the scene,
    unless it is too small for that.

    Args:
        rng: Random number generator.
        cutouts: The objects. Cut-out i gets the label i + 1, and the first tends to be the largest.
            A cut-out may appear twice.
        backgrounds: Photographs (RGB) to choose from.
        size: The side of the square scene in pixels.
    """
    canvas = random_background(rng, backgrounds, size)
    images = []
    for index, cutout in enumerate(cutouts):
        median = _AREA_MEDIAN if index == 0 else _AREA_MEDIAN / np.sqrt(len(cutouts) / 2)
        area = np.clip(median * np.exp(rng.normal(0, _AREA_SPREAD)), *_AREAS)
        angle = rng.uniform(0, 360) if rng.random() < 0.15 else rng.normal(0, 13)
        aspect = np.exp(rng.uniform(np.log(0.75), np.log(1 / 0.75)))
        images.append(
            _render(_oriented(rng, cutout), area=area, aspect=aspect, angle=angle, size=size)
        )
    images, places, order = _arrange(rng, images, size)
    for index in order:
        _paste(rng, canvas, images[index], *places[index])
    instances = _instances([_hard(image) for image in images], places, order, size)
    return Scene(_finish(rng, canvas), instances)
