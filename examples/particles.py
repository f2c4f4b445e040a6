"""Draw pictures of particles under a microscope, a domain unlike photographs.

The pictures are grey, with noise and uneven light, and show particles of several kinds. The labels
have the format of COCO. `train` and `test` show different kinds. An episode asks for one kind, and
its pictures may show other kinds too. The fine-tuning examples import the functions of this file.

    python examples/particles.py DATA
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools.mask import encode
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.data import (
    CocoInstances,
    EpisodeDataset,
    EpisodeList,
    EpisodeSampler,
    EvalTransform,
    LabelledImages,
    MaskFolders,
)
from hdmnet.metrics import FewShotIoU

MARKER = "written-by-an-example-of-hdmnet"
"""Name of an empty file in each folder that an example may write to."""
SIZE = 192  # side of a picture in pixels; outlines are drawn at twice the size
Points = list[tuple[float, float]]


def _polar(radius: Callable[[float], float], count: int = 96) -> Points:
    """Compute an outline around the origin; `radius` is a function of angle / 2π, in [0, 1)."""
    turns = np.arange(count) / count
    angles = 2 * np.pi * turns
    return [
        (radius(t) * np.cos(a), radius(t) * np.sin(a)) for t, a in zip(turns, angles, strict=True)
    ]


def _star(points: int, depth: float) -> Points:
    return _polar(lambda t: 1 if round(t * 2 * points) % 2 else depth, 2 * points)


def _waves(count: int, depth: float) -> Points:
    return _polar(lambda t: 1 - depth * (0.5 + 0.5 * np.cos(2 * np.pi * count * t)))


def _bars(*boxes: tuple[float, float, float, float]) -> list[Points]:
    return [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in boxes]


# (outlines to fill, outlines to cut out), about as large as the unit circle.
SHAPES: dict[str, tuple[list[Points], list[Points]]] = {
    "ball": ([_waves(1, 0)], []),
    "ring": ([_waves(1, 0)], [[(0.6 * x, 0.6 * y) for x, y in _waves(1, 0)]]),
    "crescent": ([_waves(1, 0)], [[(0.85 * x + 0.45, 0.85 * y) for x, y in _waves(1, 0)]]),
    "star": ([_star(5, 0.4)], []),
    "burr": ([_star(12, 0.65)], []),
    "flower": ([_waves(6, 0.45)], []),
    "clover": ([_waves(3, 0.7)], []),
    "triangle": ([_star(3, 0.5)], []),
    "frame": (_bars((-0.8, -0.8, 0.8, 0.8)), _bars((-0.5, -0.5, 0.5, 0.5))),
    "rod": (_bars((-1, -0.22, 1, 0.22)), []),
    "cross": (_bars((-0.95, -0.25, 0.95, 0.25), (-0.25, -0.95, 0.25, 0.95)), []),
    "comb": (
        _bars((-0.9, -0.6, 0.9, -0.2), *((x, -0.3, x + 0.3, 0.7) for x in (-0.9, -0.3, 0.3))),
        [],
    ),
    "hook": (_bars((-0.7, -0.8, -0.3, 0.8), (-0.5, 0.4, 0.7, 0.8)), []),
    "dumbbell": (
        [
            *([(0.45 * x + shift, 0.45 * y) for x, y in _waves(1, 0)] for shift in (-0.55, 0.55)),
            *_bars((-0.5, -0.12, 0.5, 0.12)),
        ],
        [],
    ),
    "gear": ([_star(9, 0.75)], [[(0.35 * x, 0.35 * y) for x, y in _waves(1, 0)]]),
    "arrow": ([[(1, 0), (0, 0.8), (0, 0.3), (-0.9, 0.3), (-0.9, -0.3), (0, -0.3), (0, -0.8)]], []),
}
TEST = ("crescent", "flower", "cross", "gear")
"""The held-out kinds: no example trains on them."""
TRAIN = tuple(kind for kind in SHAPES if kind not in TEST)


def draw(
    rng: np.random.Generator, kinds: Sequence[str]
) -> tuple[Image.Image, list[tuple[str, NDArray[np.bool_]]]]:
    """Draw a picture with one to six particles, and return the kind and mask of each.

    Four to six particles are drawn; those too close to an earlier one are dropped.
    """
    light = _smooth(rng, 3) * 50 + 105
    free = np.ones((SIZE, SIZE), bool)
    particles = []
    for kind in rng.choice(kinds, rng.integers(4, 7)):
        mask = _particle(rng, kind)
        if not free[mask].all():
            continue
        texture = rng.choice([-1, 1]) * rng.uniform(18, 45) + 30 * _smooth(rng, 24) * rng.random()
        light = np.where(mask, light + texture, light)
        grown = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(7))
        free &= np.asarray(grown) == 0
        particles.append((str(kind), mask))
    picture = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.4))), float)
    noisy = np.clip(blurred + rng.normal(0, rng.uniform(8, 20), blurred.shape), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8)), particles


def _particle(rng: np.random.Generator, kind: str) -> NDArray[np.bool_]:
    """Draw the mask (SIZE, SIZE) of a particle of random size, place and direction."""
    radius = rng.uniform(0.11, 0.19) * 2 * SIZE
    centre = rng.uniform(1.1 * radius, 2 * SIZE - 1.1 * radius, 2)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (2 * SIZE, 2 * SIZE))
    for outlines, value in zip(SHAPES[kind], (255, 0), strict=True):
        for outline in outlines:
            points = (np.array(outline) * [radius, radius * squeeze]) @ turn + centre
            ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points.tolist()], fill=value)
    return np.asarray(canvas.resize((SIZE, SIZE))) > 127


def _smooth(rng: np.random.Generator, cells: int) -> NDArray[np.float64]:
    """Draw smooth noise (SIZE, SIZE) in [-1, 1] that changes over about SIZE / cells pixels."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells)).astype(np.uint8))
    smooth = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, float) / 127.5 - 1


def make(folder: Path, count: int = 288) -> None:
    """Write the pictures and the COCO file of each split whose COCO file is missing.

    Args:
        folder: Folder to write to, as for `claim`.
        count: Number of pictures in `train`. `val` (the same kinds) and `test` (the held-out kinds)
            have a third of this number each.
    """
    for seed, (split, kinds) in enumerate({"train": TRAIN, "val": TRAIN, "test": TEST}.items()):
        table = folder / f"{split}.json"
        if table.is_file():
            continue
        claim(folder)
        (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        numbers = range(count if split == "train" else max(count // 3, 1))
        for number in tqdm(numbers, desc=f"drawing {split}", leave=False):
            picture, particles = draw(np.random.default_rng([seed, number]), kinds)
            name = f"{number:04}.png"
            picture.save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
            for kind, mask in particles:
                coded = encode(np.asfortranarray(mask))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": kinds.index(kind) + 1,
                        "segmentation": {"size": [SIZE, SIZE], "counts": coded["counts"].decode()},
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": i, "name": kind} for i, kind in enumerate(kinds, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        table.write_text(json.dumps(content))


def claim(folder: Path) -> None:
    """Make a folder to write to. End the program if it holds files that no example wrote."""
    marker = folder / MARKER
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise SystemExit(f"{folder} holds other files: name a new folder to write to")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def open_pictures(args: Namespace) -> tuple[LabelledImages, LabelledImages]:
    """Open the pictures to train on, and those of the held-out classes.

    They are those of `--folders`, or else particles, which are drawn if they are missing.
    """
    if args.folders is None:
        make(args.data, args.count)
        return open_split(args.data, "train"), open_split(args.data, "test")
    classes = MaskFolders(args.folders).classes
    tested = args.held_out or classes[3::4] or classes[-1:]
    trained = [name for name in classes if name not in tested]
    if not trained:
        raise SystemExit(f"{args.folders} has only the held-out classes: {', '.join(classes)}")
    return MaskFolders(args.folders, trained), MaskFolders(args.folders, tested)


def open_split(folder: Path, split: str) -> CocoInstances:
    """Open the pictures of `train`, `val` or `test`."""
    return CocoInstances(folder / split, folder / f"{split}.json")


def measure(model: HDMNet, pictures: LabelledImages, *, episodes: int) -> float:
    """Measure the one-shot mIoU on pictures of held-out classes."""
    return score(segmenter(model), held_out(pictures, episodes), resizing(model))


def held_out(pictures: LabelledImages, count: int) -> EpisodeSampler:
    """Make one-shot episodes of held-out classes."""
    return EpisodeSampler(pictures, length=count, min_area=1, order="balanced")


def resizing(model: HDMNet) -> EvalTransform:
    """Make the transform that resizes and normalises images as `HDMNet.predict` does."""
    mean, std = model.backbone.mean, model.backbone.std
    return EvalTransform(model.image_size, mean=mean, std=std, keep_ratio=False)


def segmenter(model: HDMNet) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make a function from episode tensors to scores, on a fused copy of the model."""
    fused = model.fused()
    device = next(fused.parameters()).device

    def segment(*episode: Tensor) -> Tensor:
        query, supports, masks = (tensor.to(device) for tensor in episode)
        return fused.scores(query, fused.encode(supports, masks)).cpu()

    return segment


def score(
    segment: Callable[[Tensor, Tensor, Tensor], Tensor],
    episodes: EpisodeSampler | EpisodeList,
    transform: EvalTransform,
) -> float:
    """Measure the mIoU of `segment` on episodes.

    Args:
        segment: Function from query, supports and masks to scores (1, 2, H, W).
        episodes: Episodes to measure on.
        transform: Resizes the images, and the scores back to the size of the query.
    """
    dataset = EpisodeDataset(episodes, transform)
    metric = FewShotIoU(dataset.class_names, sync_on_compute=False)  # only one process measures
    # Its own generator, because measuring must not change the random numbers of the training.
    loader = DataLoader(dataset, generator=torch.Generator())
    for item in tqdm(loader, desc="held-out classes", leave=False):
        target = item["target"]
        with torch.inference_mode():
            scores = segment(item["query"], item["supports"], item["masks"])
        mask = transform.restore(scores, (target.shape[1], target.shape[2])).argmax(dim=1)
        metric.update(mask, target, item["label"])
    return metric.compute()["final/mIoU"].item()


def arguments(
    description: str | None, *, steps: int, batch: int, lr: float, folders: bool = False
) -> ArgumentParser:
    """Make the parser of the options that all fine-tuning examples share.

    Args:
        description: The example's docstring.
        steps: Default of `--steps`.
        batch: Default of `--batch`.
        lr: Default of `--lr`.
        folders: Whether the example also trains on pictures of one's own, see `open_pictures`.
    """
    parser = ArgumentParser(description=(description or "").splitlines()[0])
    count = "?" if folders else None
    about = "folder of the particles; missing splits are drawn"
    parser.add_argument("data", type=Path, nargs=count, help=about)
    parser.add_argument("run", type=Path, help="folder to write the model and its curve to")
    if folders:
        about = "your own DIR/CLASS/images and DIR/CLASS/masks instead of DATA"
        parser.add_argument("--folders", type=Path, metavar="DIR", help=about)
        about = "class of DIR to measure on; may be given again; default: every fourth class"
        parser.add_argument("--held-out", action="append", metavar="CLASS", help=about)
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=batch, help="items per step (all processes)")
    parser.add_argument("--size", type=int, default=SIZE, help="side of training windows, pixels")
    parser.add_argument("--lr", type=float, default=lr, help="learning rate")
    parser.add_argument("--every", type=int, default=100, help="steps between measurements")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per measurement")
    parser.add_argument("--count", type=int, default=288, help="pictures to train on")
    return parser


def parse(parser: ArgumentParser) -> Namespace:
    """Parse the command line, and claim the folder to write to."""
    args = parser.parse_args()
    if "folders" in args and (args.data is None) == (args.folders is None):
        parser.error("give either DATA or --folders DIR, and RUN")
    claim(args.run)
    return args


def choose_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Parse the command line and draw."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder to write to")
    parser.add_argument("--count", type=int, default=288, help="pictures to train on")
    args = parser.parse_args()
    make(args.data, args.count)


if __name__ == "__main__":
    main()
