"""What Label Studio's tasks, labeling interfaces and regions mean."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from label_studio_sdk import LabelStudio
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
from label_studio_sdk.converter.brush import decode_rle
from PIL import Image, ImageDraw

from hdmnet.annotations import Box
from hdmnet.base import FewShotModel

Json = Mapping[str, Any]


def find_brush(label_config: str) -> tuple[str, dict[str, Any]]:
    """Return the first BrushLabels of a labeling interface: its name, and what is in it."""
    tags = parse_config(label_config)
    for name, tag in tags.items():
        if tag["type"] == "BrushLabels":
            return name, tag
    raise ValueError(f"expected BrushLabels in the labeling interface, got {list(tags)}")


def download_image(task: Json, tag: Json) -> str:
    """Return the file of the image that a tag of the labeling interface labels."""
    key = os.environ.get("LABEL_STUDIO_API_KEY", "")
    if key.count(".") == 2:  # get_local_path needs the short-lived key that this token gives
        key = client().tokens.refresh(refresh=key).access
    url = task["data"][tag["inputs"][0]["value"]]
    return str(get_local_path(url, access_token=key, task_id=task["id"]))


def client() -> LabelStudio:
    """Return a client of the server that the environment names."""
    return LabelStudio(
        base_url=os.environ["LABEL_STUDIO_URL"], api_key=os.environ["LABEL_STUDIO_API_KEY"]
    )


def draw_region(model: FewShotModel, image: str, region: Json) -> np.ndarray:
    """Return the mask (H, W) of a region. Its coordinates are percents of the image."""
    value, size = region["value"], (region["original_width"], region["original_height"])
    if region["type"] == "brushlabels":
        return decode_rle(value["rle"]).reshape(size[1], size[0], 4)[..., 3] > 127
    scale = np.array(size) / 100
    if region["type"] == "polygonlabels":
        canvas = Image.new("1", size)
        corners = np.array(value["points"]) * scale - 0.5  # PIL counts from centres of pixels
        ImageDraw.Draw(canvas).polygon([tuple(xy) for xy in corners.tolist()], fill=1)
        return np.array(canvas)
    turn = np.exp(1j * np.deg2rad(value.get("rotation", 0)))  # around the first corner
    x, y = np.array([value["x"], value["y"]]) * scale
    width, height = np.array([value["width"], value["height"]]) * scale
    corners = x + 1j * y + turn * np.array([0, width, 1j * height, width + 1j * height])
    box = Box(corners.real.min(), corners.imag.min(), corners.real.max(), corners.imag.max())
    return model.pseudo_mask(image, box).numpy() > 0
