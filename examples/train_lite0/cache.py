"""Make the scenes of training and validation, and write the features of the frozen backbone.

    python cache.py DATA PHOTOS train
    python cache.py DATA PHOTOS val

Each set of scenes has a folder of its own in DATA/features/BACKBONE-SIZE. An interrupted run
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from composed import ComposedScenes
from features import BACKBONES, SIZE, Scenes, features_folder, write_features
from photos import VALIDATION, PhotoScenes

COUNTS = {"composed": 4000, "VOC2012": 4500, "CCP": 1300}
"""Scenes of each set in training. Several show the same photograph."""
VALIDATION_COMPOSED = 240


def main() -> None:
    """Parse the command line and write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("photos", type=Path, help="folder that photographs.py wrote")
    parser.add_argument("split", choices=("train", "val"))
    parser.add_argument("--sets", nargs="+", help="default: all of the split")
    parser.add_argument("--part", type=float, default=1.0, help="share of the scenes of training")
    parser.add_argument("--backbone", choices=BACKBONES, default="lite0")
    parser.add_argument("--size", type=int, default=SIZE, help="of the scenes, 8n + 1 pixels")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    args = parser.parse_args()
    if args.size % 8 != 1:
        parser.error(f"--size must be 8n + 1, so that flips are exact, got {args.size}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    every = COUNTS if args.split == "train" else ["composed", *VALIDATION]
    for name in args.sets or every:
        if name in VALIDATION:
            photos = PhotoScenes(args.photos / name, args.split, args.size)
            scenes: Scenes = photos
            in_validation = len(photos.names)
        else:
            scenes = ComposedScenes(args.data, args.split, args.size)
            in_validation = VALIDATION_COMPOSED
        count = round(args.part * COUNTS[name]) if args.split == "train" else in_validation
        folder = features_folder(args.data, args.backbone, args.size) / f"{name}-{args.split}"
        # Other random numbers for each split; the same for each backbone.
        seed = ("train", "val").index(args.split)
        write_features(scenes, count, folder, backbone=args.backbone, seed=seed)


if __name__ == "__main__":
    main()
