"""Masks as people draw them in a hurry: boxes, squares around points, and inexact outlines."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

KINDS = {"box": 0.4, "points": 0.2, "eroded": 0.12, "dilated": 0.14, "polygon": 0.14}
"""Probability of each kind."""
REACH = 0.1
"""Half of the side of a square around a point, as a share of the picture: as in `hdmnet.pseudo`."""
CORNERS = 8
"""Corners of a polygon."""


def draw_kind(rng: np.random.Generator) -> str:
    """Draw a kind of rough mask."""
    return str(rng.choice(list(KINDS), p=list(KINDS.values())))


def roughen(rng: np.random.Generator, mask: np.ndarray, kind: str) -> np.ndarray:
    """Make a rough mask (H, W) bool of an exact one. It is not empty.

    box: the bounding box. points: squares around 1 to 3 of the object's pixels. eroded, dilated: by
    1 to 4 % of the picture. polygon: a polygon around each part, with its corners on the outline.
    """
    height, width = mask.shape
    rough = np.zeros_like(mask)
    if kind == "box":
        rough[ndimage.find_objects(mask.astype(np.uint8))[0]] = True
    elif kind == "points":
        rows, columns = np.nonzero(mask)
        for i in rng.integers(len(rows), size=rng.integers(1, 4)):
            top, left = rows[i] - round(REACH * height), columns[i] - round(REACH * width)
            bottom, right = 2 * rows[i] - top + 1, 2 * columns[i] - left + 1
            rough[max(top, 0) : bottom, max(left, 0) : right] = True
    elif kind in ("eroded", "dilated"):
        radius = rng.uniform(0.01, 0.04) * height
        if kind == "eroded":
            rough = ndimage.distance_transform_edt(mask) > radius
        else:
            rough = ndimage.distance_transform_edt(~mask) < radius
    elif kind == "polygon":
        picture = Image.new("1", (width, height))
        parts, _ = ndimage.label(mask)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            edge = (parts == number) & ~ndimage.binary_erosion(parts == number)
            rows, columns = np.nonzero(edge)
            centre = [(s.start + s.stop) / 2 for s in box]
            angles = np.arctan2(rows - centre[0], columns - centre[1])
            corners = rng.integers(len(rows), size=CORNERS)
            corners = corners[np.argsort(angles[corners])]
            if len(set(corners)) > 2:
                points = [(int(columns[c]), int(rows[c])) for c in corners]
                ImageDraw.Draw(picture).polygon(points, fill=1)
        rough = np.array(picture)
    else:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return rough if rough.any() else mask
