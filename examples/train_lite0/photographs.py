"""Make the folders of real photographs of the originals that their authors publish.

    python photographs.py DATA PHOTOS

Downloads go to DATA/originals: PASCAL VOC 2012, the masks of SBD, Clothing Co-Parsing and the car
parts. What is there already is used: archives, and folders of PHOTOS. Each of PHOTOS/VOC2012, CCP
and CarParts gets `JPEGImages`, `SegmentationClassAug` and, except for VOC, `classes.json`.
`photographs.txt` lists the photographs: none shows a cow or a horse, or is in the validation list
of VOC.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from scipy.io import loadmat
from torchvision.datasets.utils import download_and_extract_archive
from tqdm import tqdm

logger = logging.getLogger(__name__)

ORIGINALS = {
    "VOCdevkit": (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "6cd6e144f989b92b3379bac3b3de84fd",
    ),
    "benchmark_RELEASE": (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz",
        "82b4d87ceb2ed10f6038a1cba92111cb",
    ),
    "clothing-co-parsing-master": (
        "https://github.com/bearpaw/clothing-co-parsing/archive/refs/heads/master.zip",
        None,
    ),
    "Car-Parts-Segmentation-master": (
        "https://github.com/dsmlr/Car-Parts-Segmentation/archive/refs/heads/master.zip",
        None,
    ),
}
"""Folder of each archive, its address, and its MD5 hash where the authors fix it."""
SIDES = {"VOC2012": 384, "CCP": 384, "CarParts": 320}
"""Longer side of the copies, in pixels."""
HELD_OUT = {"bag", "belt", "boots", "glasses", "hat", "purse", "scarf", "sunglasses"}
HELD_OUT |= {"tie", "wallet", "watch"}
"""Garments that no label map shows: they stay unseen."""
NAMES = Path(__file__).with_name("photographs.txt")

Photograph = tuple[str, Path, np.ndarray]
"""Name, file of the picture, label map (H, W) uint8."""


def read_names() -> dict[str, list[str]]:
    """Read the lists of `photographs.txt`."""
    parts = re.split(r"^# (\w+)$", NAMES.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.split() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def voc(originals: Path, names: list[str]) -> Iterator[Photograph]:
    """Yield the photographs of PASCAL VOC: its own masks, or else those of SBD."""
    root, sbd = originals / "VOCdevkit" / "VOC2012", originals / "benchmark_RELEASE" / "dataset"
    for name in names:
        own = root / "SegmentationClass" / f"{name}.png"
        if own.exists():
            labels = np.asarray(Image.open(own))
        else:
            table = loadmat(sbd / "cls" / f"{name}.mat", simplify_cells=True)
            labels = table["GTcls"]["Segmentation"].astype(np.uint8)
        yield name, root / "JPEGImages" / f"{name}.jpg", labels


def ccp_classes(originals: Path) -> dict[int, str]:
    """Return the garments of CCP by label, without the held-out ones and the background."""
    table = loadmat(
        originals / "clothing-co-parsing-master" / "label_list.mat", simplify_cells=True
    )
    names = enumerate(str(name) for name in table["label_list"])
    return {label: name for label, name in names if label and name not in HELD_OUT}


def ccp(originals: Path, names: list[str]) -> Iterator[Photograph]:
    """Yield the photographs of Clothing Co-Parsing."""
    root, kept = originals / "clothing-co-parsing-master", ccp_classes(originals)
    for name in names:
        table = loadmat(root / "annotations" / "pixel-level" / f"{name}.mat", simplify_cells=True)
        labels = table["groundtruth"].astype(np.uint8)
        labels = np.where(np.isin(labels, list(kept)), labels, 0).astype(np.uint8)
        yield name, root / "photos" / f"{name}.jpg", labels


def car_parts(originals: Path, classes: dict[int, str]) -> Iterator[Photograph]:
    """Yield the photographs of the car parts; `classes` names the parts by label."""
    label_of = {name: label for label, name in classes.items()}
    for folder, prefix in (("trainingset", "tr"), ("testset", "te")):
        root = originals / "Car-Parts-Segmentation-master" / folder
        table = COCO(root / "annotations.json")
        for entry in table.loadImgs(table.getImgIds()):
            labels = np.zeros((entry["height"], entry["width"]), np.uint8)
            for part in table.loadAnns(table.getAnnIds(entry["id"])):
                name = table.cats[part["category_id"]]["name"]
                if name in label_of:
                    labels[table.annToMask(part) == 1] = label_of[name]
            file = root / entry["file_name"]
            file = file if file.exists() else root / "JPEGImages" / Path(entry["file_name"]).name
            yield f"{prefix}{int(re.sub(r'[^0-9]', '', file.stem)):04}", file, labels


def car_part_classes(originals: Path) -> dict[int, str]:
    """Return the parts of the cars by label, from 2 in the order of their names."""
    file = originals / "Car-Parts-Segmentation-master" / "trainingset" / "annotations.json"
    names = sorted(category["name"] for category in json.loads(file.read_text())["categories"])
    return dict(enumerate((name for name in names if "background" not in name), start=2))


def write(folder: Path, photographs: Iterator[Photograph], side: int, count: int | None) -> None:
    """Write smaller copies: pictures by antialiasing, labels by nearest neighbour."""
    for name in ("JPEGImages", "SegmentationClassAug"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, file, labels in tqdm(photographs, folder.name, total=count):
        with Image.open(file) as picture:
            image = picture.convert("RGB")
        scale = min(1.0, side / max(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        smaller = image.resize(size, Image.Resampling.LANCZOS)
        smaller.save(folder / "JPEGImages" / f"{name}.jpg", quality=92)
        mask = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        mask.save(folder / "SegmentationClassAug" / f"{name}.png")


def main() -> None:
    """Parse the command line, download, and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder for the originals")
    parser.add_argument("photos", type=Path, help="folder to write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    missing = [name for name in SIDES if not (args.photos / name).exists()]
    originals = args.data / "originals"
    for folder, (url, md5) in ORIGINALS.items() if missing else ():
        if not (originals / folder).exists():
            download_and_extract_archive(url, str(originals), md5=md5)
    names = read_names()
    for name in missing:
        classes: dict[int, str] | None = None
        if name == "VOC2012":
            photographs = voc(originals, names[name])
        elif name == "CCP":
            classes, photographs = ccp_classes(originals), ccp(originals, names[name])
        else:
            classes = car_part_classes(originals)
            photographs = car_parts(originals, classes)
        folder = args.photos / f"{name}.tmp"  # renamed when it is complete
        write(folder, photographs, SIDES[name], len(names.get(name, ())) or None)
        if classes is None:
            lists = folder / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / "trainaug.txt").write_text("\n".join(names[name]) + "\n")
        else:
            (folder / "classes.json").write_text(json.dumps(classes, indent=1))
        folder.rename(args.photos / name)


if __name__ == "__main__":
    main()
