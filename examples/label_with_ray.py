"""Label a large folder of images with an encoded support set, on Ray Data.

    python examples/label_with_ray.py IMAGES CLASS.safetensors OUT

`model.encode_supports(...).save(path)` writes CLASS.safetensors. The mask of IMAGES/a/b.jpg is
OUT/a/b.jpg.png. A second run skips images with a mask, and those that OUT/errors.jsonl lists as
unreadable (delete a line to try again). The nodes of RAY_ADDRESS need hdmnet, IMAGES and OUT.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from hdmnet import HDMNet, SupportSet
from hdmnet.images import load_image

try:
    import ray.data
except ImportError as error:
    raise SystemExit(f"{error}: pip install '.[ray]'") from error

logger = logging.getLogger(__name__)
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Labeller:
    """Actor that keeps the model and the encoded supports."""

    def __init__(self, shipped: ray.ObjectRef[tuple[HDMNet, SupportSet]], images: Path, out: Path):
        torch.set_num_threads(1)  # an actor has one CPU
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        model, supports = ray.get(shipped)
        self._model, self._supports = model.to(device).fused(), supports.to(device)
        self._images, self._out = images, out

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes | str]:
        """Label one image; add an error message to the row, empty if it was labelled."""
        name = os.fsdecode(row["name"])
        mask = self._out / f"{name}.png"
        if not mask.exists():  # it exists if an actor died after it wrote the mask
            try:
                image = load_image(self._images / name)
            except (OSError, ValueError) as error:
                return row | {"error": str(error)}
            mask.parent.mkdir(parents=True, exist_ok=True)
            self._model.predict(image, self._supports).save(mask)
        return row | {"error": ""}


def find_images(folder: Path, out: Path) -> Iterator[str]:
    """Yield the images below `folder`, except those below `out`, as paths relative to `folder`."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and out not in path.parents and path.is_file():
            yield str(path.relative_to(folder))


def label(names: list[str], shipped: object, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Label images in a pool of actors; yield names and errors (empty for a labelled image)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(include_dashboard=False)
    rows = [{"name": os.fsencode(name)} for name in names]  # bytes: a name may be invalid UTF-8
    tasks = min(1 + len(rows) // args.batch_size, 10_000)  # Ray tracks every task
    answers = ray.data.from_items(rows, override_num_blocks=tasks).map(
        Labeller,
        fn_constructor_args=(ray.put(shipped), args.images, args.out),
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_gpus=args.gpus_per_actor,
    )
    for answer in answers.iter_rows():
        yield os.fsdecode(answer["name"]), answer["error"]


def main() -> None:
    """Label the images that have no mask yet, and log a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of images, searched with its subfolders")
    parser.add_argument("supports", type=Path, help="file written by SupportSet.save")
    parser.add_argument("out", type=Path, help="folder for masks and errors.jsonl")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--actors", type=int, help="one CPU each (default: as many as fit)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per task")
    parser.add_argument("--gpus-per-actor", type=float, default=0, help="1, 0.5, … (default: 0)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, supports = HDMNet.from_pretrained(args.model), SupportSet.load(args.supports)
    if supports.fingerprint != model.fingerprint():
        parser.error(f"{args.supports} was encoded by another model: pass its --model")
    args.images, args.out = args.images.resolve(strict=True), args.out.resolve()
    if args.images.is_relative_to(args.out):
        parser.error(f"{args.out} holds IMAGES: give the masks a folder of their own")
    args.out.mkdir(parents=True, exist_ok=True)
    names = list(find_images(args.images, args.out))
    start, count = time.perf_counter(), Counter[str]()
    with open(args.out / "errors.jsonl", "a+", buffering=1, encoding="utf-8") as errors:
        errors.seek(0)
        known = {json.loads(line)["image"] for line in errors}
        todo = [n for n in names if n not in known and not (args.out / f"{n}.png").exists()]
        for name, error in label(todo, (model, supports), args) if todo else ():
            count["unreadable" if error else "labelled"] += 1
            if error:
                errors.write(json.dumps({"image": name, "error": error}) + "\n")
    seconds, good = time.perf_counter() - start, count["labelled"]
    for left in args.out.rglob(".????????????.tmp"):  # an actor died while it wrote the mask
        left.unlink()
    summary = "%d labelled in %.0f s (%.1f a second), %d unreadable, %d skipped"
    logger.info(summary, good, seconds, good / seconds, count["unreadable"], len(names) - len(todo))


if __name__ == "__main__":
    main()
