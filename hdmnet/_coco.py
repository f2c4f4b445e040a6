"""Masks as a data set in COCO's format."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def coco_dataset(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Join the masks of several images.

    Args:
        records: For each image its `file_name`, `height` and `width`, and `results`, as from
            `to_coco`.
        names: The classes, in the order of their numbers from 1.

    Returns:
        `images`, `annotations` and `categories`, which `json.dump` can write. `info` says that the
        masks are of upright images, as EXIF turns them.

    Raises:
        ImportError: If pycocotools, of `hdmnet[eval]`, is not installed.
    """
    import pycocotools.mask as coco

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        images.append(
            {"id": number} | {key: record[key] for key in ("file_name", "height", "width")}
        )
        for result in record["results"]:
            run_lengths = result["segmentation"]
            about = {
                "id": len(annotations) + 1,
                "image_id": number,
                "area": int(coco.area(run_lengths)),
                "bbox": coco.toBbox(run_lengths).tolist(),
                "iscrowd": 0,
            }
            annotations.append(result | about)
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    info = {"description": "Masks of upright images (EXIF is applied), by hdmnet", "upright": True}
    return {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
