"""Measure what boxes, scribbles and points cost in mIoU, compared with masks.

    python examples/annotations.py VOCdevkit/VOC2012 MASKS --classes 11 12 13

It draws the annotations from the masks of the supports, as somebody might draw them by hand:

* box: the bounding box of all pixels of the class;
* scribble: a stroke inside the largest part of the object. It starts at a random pixel and takes
  a shortest way to the pixel that is farthest from it;
* 3 points, 1 point: random pixels of the class.

Strokes and points keep 2 % of the image's longer side away from the border of the object, if it is
thick enough. There is nothing negative. Every kind has the same episodes. IoU is at the query's own
size, without ignored pixels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from hdmnet import Box, FewShotModel, HDMNet, Points, Scribble, SupportSet, load_mask
from hdmnet.annotations import Annotation
from hdmnet.data import VOID, EpisodeSampler, LabelledImages, PascalVOC
from hdmnet.metrics import FewShotIoU

KINDS = ("mask", "filled box", "box", "scribble", "3 points", "1 point")
STEP = 5  # pixels between two points of a stroke


def inner_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Take the pixels of a mask that keep away from its border, or all of a thin one."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return distance > min(0.02 * max(mask.shape), distance.max() / 2)


def draw_box(mask: NDArray[np.bool_]) -> Box:
    """Draw the bounding box."""
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    return Box(columns.start, rows.start, columns.stop, rows.stop)


def draw_points(mask: NDArray[np.bool_], count: int, rng: np.random.RandomState) -> Points:
    """Draw random points."""
    places = np.argwhere(inner_part(mask))
    chosen = places[rng.choice(len(places), count, replace=len(places) < count)]
    return Points([(x, y) for y, x in chosen.tolist()])


def draw_stroke(mask: NDArray[np.bool_], rng: np.random.RandomState) -> Scribble:
    """Draw a stroke from a random pixel of the largest part to the one farthest from it."""
    parts, _ = ndimage.label(inner_part(mask), np.ones((3, 3)))
    part = np.pad(parts == np.bincount(parts.ravel())[1:].argmax() + 1, 1)
    places = np.argwhere(part)
    reached = np.zeros_like(part)
    reached[tuple(places[rng.randint(len(places))])] = True
    steps = np.full(part.shape, np.iinfo(int).max)  # of the shortest way to the start
    count = 0
    while (new := reached & (steps > count)).any():
        steps[new] = count
        count += 1
        reached = ndimage.binary_dilation(reached, np.ones((3, 3))) & part
    y, x = np.unravel_index(np.where(part, steps, -1).argmax(), part.shape)
    way = [(int(x) - 1, int(y) - 1)]
    while steps[y, x] > 0:
        near = steps[y - 1 : y + 2, x - 1 : x + 2]
        dy, dx = np.unravel_index(near.argmin(), near.shape)
        y, x = y + dy - 1, x + dx - 1
        way.append((int(x) - 1, int(y) - 1))
    return Scribble([[*way[:-1:STEP], way[-1]]])


def draw(kind: str, mask: NDArray[np.bool_], rng: np.random.RandomState) -> Annotation:
    """Draw an annotation of this kind."""
    if kind == "box":
        return draw_box(mask)
    if kind == "scribble":
        return draw_stroke(mask, rng)
    return draw_points(mask, int(kind.split()[0]), rng)


class Supports:
    """The supports of a collection, encoded with the mask of each kind, each of them once."""

    def __init__(
        self, model: FewShotModel, source: LabelledImages, seed: int, folder: Path
    ) -> None:
        self.model, self.source, self.seed, self.folder = model, source, seed, folder
        self.ious: dict[tuple[str, int, int], float] = {}
        self._sets: dict[tuple[str, int, int], SupportSet] = {}

    def encode(self, kind: str, index: int, label: int) -> SupportSet:
        """Encode one support, and compare its mask with the true one."""
        key = kind, index, label
        if key not in self._sets:
            labels, image = self.source.label(index), self.source.image(index)
            true = np.where(labels == VOID, 255, labels == label).astype(np.uint8)
            given, mask = self._mark(kind, index, label, true)
            counted, union = true != 255, (mask == 1) | (true == 1)
            self.ious[key] = ((mask == 1) & (true == 1)).sum() / (union & counted).sum()
            self._sets[key] = self.model.encode_supports(image, given)
        return self._sets[key]

    def _mark(
        self, kind: str, index: int, label: int, true: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8] | Annotation, NDArray[np.uint8]]:
        """Return what marks the object, and the mask that it stands for."""
        if kind == "mask":
            return true, true
        if kind == "filled box":
            filled = (draw_box(true == 1).seeds(true.shape) > 0).byte().numpy()
            return filled, filled
        annotation = draw(kind, true == 1, np.random.RandomState([self.seed, index, label]))
        file = self.folder / kind / f"{self.source.ids[index]}_{label}.png"
        if not file.is_file():
            mask = self.model.pseudo_mask(self.source.image(index), annotation)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.mul(255).numpy()).save(file)
        return annotation, load_mask(file).numpy()


def score(supports: Supports, episodes: EpisodeSampler) -> str:
    """Score every kind on the same episodes. Return a table."""
    source, used = episodes.source, set()
    metric = FewShotIoU([source.classes[c - 1] for c in episodes.classes], heads=KINDS)
    for query, indices, label in tqdm(episodes, desc=f"{episodes.shots} shots"):
        used |= {(i, label) for i in indices}
        image, masks = source.image(query), {}
        for kind in KINDS:  # not in one call: they are no different classes, and must not compete
            first, *others = (supports.encode(kind, i, label) for i in indices)
            masks[kind] = supports.model.predict(image, first.merge(*others)).mask[None]
        labels = torch.from_numpy(source.label(query))
        target = torch.where(labels == VOID, 255, (labels == label).long())[None]
        number = torch.tensor([episodes.classes.index(label)])
        metric.update(masks, target, number)
    scores = metric.compute()
    rows = [
        f"{len(episodes)} episodes of {episodes.shots} shots, {len(used)} supports",
        "| supports | IoU of their masks | mIoU | of that of masks |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        iou = 100 * np.mean([supports.ious[kind, i, label] for i, label in used])
        miou, best = 100 * scores[f"{kind}/mIoU"], 100 * scores["mask/mIoU"]
        rows.append(f"| {kind} | {iou:.1f} | {miou:.1f} | {100 * miou / best:.1f} % |")
    return "\n".join(rows)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of PASCAL VOC 2012")
    parser.add_argument("masks", type=Path, help="folder that keeps the masks that were made")
    parser.add_argument("--list", default="val", help="name or file of a list of images")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--classes", type=int, nargs="+", help="labels of the classes to score")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 500], help="per shots")
    parser.add_argument("--min-area", type=int, default=2048, help="pixels that an object needs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = PascalVOC(args.root, args.list)
    model = HDMNet.from_pretrained(args.model).fused()
    supports = Supports(model, source, args.seed, args.masks)
    for shots, count in zip(args.shots, args.episodes, strict=True):
        episodes = EpisodeSampler(
            source,
            args.classes,
            shots=shots,
            length=count,
            seed=args.seed,
            min_area=args.min_area,
            order="balanced",
        )
        print(score(supports, episodes), flush=True)


if __name__ == "__main__":
    main()
