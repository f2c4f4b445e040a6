"""Choose the input size and the decision threshold on the validation split, and write the weights.

After training, the threshold with the best IoU is below 0.5. A shift of the classifier's bias moves
it to 0.5, because `predict` uses `mask = probability > 0.5`.

    python export.py DATA RUN OUT
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from score import THRESHOLDS, Episode, HeldOut, IoU
from tqdm import tqdm

from hdmnet import HDMNet

logger = logging.getLogger(__name__)

EPISODES = 120
SIZES = (193, 225, 257)


def sweep(model: HDMNet, episodes: list[Episode]) -> np.ndarray:
    """Measure the class mIoU at each threshold, as the mean of one-shot and five-shot."""
    ious = (IoU(), IoU())
    for episode in tqdm(episodes, desc=f"{model.image_size} px"):
        for iou, shots in zip(ious, (1, len(episode.supports)), strict=True):
            result = model.predict(episode.query, episode.supports[:shots], episode.masks[:shots])
            probability = result.probability.numpy()
            above = np.stack([probability > threshold for threshold in THRESHOLDS])
            iou.add(episode.category, above, episode.target)
    logger.info(
        "%d px: best one-shot %.3f, five-shot %.3f",
        model.image_size,
        *(iou.mean().max() for iou in ious),
    )
    return (ious[0].mean() + ious[1].mean()) / 2


def main() -> None:
    """Choose the size and the threshold, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("out", type=Path, help="folder for config.json and the weights")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    trained = HDMNet.from_pretrained(args.run)
    validation = HeldOut(args.data, "val", seed=0)
    episodes = [validation[i] for i in tqdm(range(EPISODES), desc="episodes")]
    found = {}
    for size in SIZES:
        trained.image_size = size
        found[size] = sweep(trained, episodes)
    size = max(found, key=lambda s: found[s].max())
    threshold = float(THRESHOLDS[found[size].argmax()])
    logger.info("chosen: %d px, threshold %.2f, mIoU %.3f", size, threshold, found[size].max())

    model = HDMNet(**trained.config | {"image_size": size, "frozen_norm": True})
    model.load_state_dict(trained.state_dict())
    with torch.no_grad():
        bias = model.cascade.classifier.get_parameter("4.bias")
        bias[1] -= math.log(threshold / (1 - threshold))
    model.save_pretrained(args.out)
    file = args.out / "model.safetensors"
    halved = {
        key: value.half() if value.is_floating_point() else value
        for key, value in load_file(file).items()
    }
    temporary = file.with_suffix(".tmp")
    save_file(halved, temporary, {"format": "pt"})
    temporary.replace(file)
    logger.info("%s: %.1f MB", file, file.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
