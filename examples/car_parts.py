"""Make a small domain to fine-tune on: parts of cars, from 20 photographs.

    python examples/car_parts.py PHOTOS/CarParts CARS
    python examples/finetune_torch.py --folders CARS RUN --size 353 --lr 5e-5 --steps 60 \
        --held-out front_glass --held-out hood --held-out mirror --held-out wheel
    python examples/average_weights.py RUN/model BETTER

PHOTOS is what `examples/train_lite0/photographs.py` writes. CARS gets a folder for each class. The
held-out parts come from all other photographs. Left and right are one class; a tailgate counts as
a trunk.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from particles import claim
from PIL import Image

HELD_OUT = ("front_glass", "hood", "mirror", "wheel")
SMALLEST = 0.005  # share of the photograph that a part covers


def write(source: Path, names: list[str], parts: dict[str, list[int]], folder: Path) -> None:
    """Write each part that is large enough as an image and a mask."""
    for name in names:
        labels = np.asarray(Image.open(source / "SegmentationClassAug" / f"{name}.png"))
        for part, numbers in parts.items():
            mask = np.isin(labels, numbers)
            if mask.mean() < SMALLEST:
                continue
            for kind in ("images", "masks"):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
            photograph = source / "JPEGImages" / f"{name}.jpg"
            (folder / part / "images" / photograph.name).write_bytes(photograph.read_bytes())
            Image.fromarray(mask).save(folder / part / "masks" / f"{name}.png")


def main() -> None:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the photographs and label maps")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--photographs", type=int, default=20, help="to train on")
    parser.add_argument("--seed", type=int, default=0, help="which photographs")
    args = parser.parse_args()
    claim(args.out)
    trained: dict[str, list[int]] = {}
    held_out: dict[str, list[int]] = {}
    for label, name in json.loads((args.source / "classes.json").read_text()).items():
        part = re.sub("left_|right_", "", name).replace("tailgate", "trunk")
        if label != "0":
            (held_out if part in HELD_OUT else trained).setdefault(part, []).append(int(label))
    names = sorted(path.stem for path in (args.source / "JPEGImages").glob("*.jpg"))
    names = [str(name) for name in np.random.default_rng(args.seed).permutation(names)]
    write(args.source, names[: args.photographs], trained, args.out)
    write(args.source, names[args.photographs :], held_out, args.out)


if __name__ == "__main__":
    main()
