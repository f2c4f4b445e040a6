"""What Label Studio's tasks, labeling interfaces and regions mean."""

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from label_studio_sdk import LabelStudio
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image, ImageDraw

from hdmnet.annotations import Box
from hdmnet.base import FewShotModel
from hdmnet.segmentation import Segmentation

Json = Mapping[str, Any]
KINDS = ("brushlabels", "polygonlabels", "rectanglelabels")


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


def read_masks(
    model: FewShotModel, label_config: str, task: Json, annotation: Json
) -> dict[str, dict[str, np.ndarray | Box]]:
    """Return the masks that an annotation shows, by label and by the file of the image.

    What is marked by one rectangle alone is a `Box`.

    Args:
        model: It makes masks of rectangles beside other regions.
        label_config: The labeling interface.
        task: The task of the annotation.
        annotation: The annotation.
    """
    tags = parse_config(label_config)
    images: dict[str, str] = {}  # by tag: each costs requests
    drawn: dict[str, dict[str, list[np.ndarray | Box]]] = defaultdict(lambda: defaultdict(list))
    for region in annotation["result"]:
        if (kind := region.get("type")) in KINDS:
            name = region["from_name"]
            images[name] = image = images.get(name) or download_image(task, tags[name])
            for label in region["value"][kind]:
                drawn[label][image].append(_draw(region))
    return {
        label: {image: _join(model, image, regions) for image, regions in shown.items()}
        for label, shown in drawn.items()
    }


def brush_region(label: str, answer: Segmentation, name: str, tag: Json) -> Json:
    """Turn the answer for a label into a region of the BrushLabels `name`."""
    height, width = answer.mask.shape
    rle = mask2rle(answer.mask.numpy().astype(np.uint8) * 255)
    return {
        "type": "brushlabels",
        "from_name": name,
        "to_name": tag["to_name"][0],
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": rle, "brushlabels": [label]},
        "score": answer.probability[answer.mask].mean().item(),
    }


def _join(model: FewShotModel, image: str, regions: list[np.ndarray | Box]) -> np.ndarray | Box:
    if len(regions) == 1:
        return regions[0]
    masks = [model.pseudo_mask(image, r).numpy() if isinstance(r, Box) else r for r in regions]
    joined: np.ndarray = np.logical_or.reduce(masks)
    return joined


def _draw(region: Json) -> np.ndarray | Box:
    """Return the mask (H, W) or the box of a region. Its coordinates are percents of the image."""
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
    return Box(corners.real.min(), corners.imag.min(), corners.real.max(), corners.imag.max())
