"""Choose thresholds and temperature on validation classes, fit presence, write the weights.

    python export.py DATA PHOTOS RUN OUT

Two decision thresholds are chosen, for one support and for five, by the class mIoU, the mean over
the sets. Among those that are at most TOLERATED below the best, it is the largest: it finds least
where the class is not shown. The temperature T then minimises the cross-entropy of the pixels.
Presence compares by the classifier of the backbone, and is fitted as in `examples/fit_presence.py`.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from features import BACKBONES, class_evidence
from held_out import SHOTS, ComposedEpisodes, Episode, IoU, PhotoEpisodes
from photos import VALIDATION
from safetensors.torch import load_file, save
from torchmetrics.functional.classification import binary_calibration_error
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.data import PascalVOC
from hdmnet.nn.calibration import Calibration

sys.path.append(str(Path(__file__).parents[1]))
from fit_presence import fit_presence, with_options

logger = logging.getLogger(__name__)

CHOSEN_ON = ("VOC2012", "CCP")
"""Sets of photographs, beside composed pictures. Car parts stay a domain that nothing has seen."""
EPISODES = 80
"""Of each validation set."""
THRESHOLDS = np.linspace(0.1, 0.9, 33)
TOLERATED = 0.005
"""Class mIoU that a larger threshold may cost."""
TEMPERATURES = np.geomspace(0.5, 4, 40)
PIXELS = 500
"""Taken of each answer, for temperature and calibration error."""
BINS = 15


class Sweep:
    """The answers of a model with K supports, at each threshold."""

    def __init__(self, model: HDMNet, sets: dict[str, list[Episode]], shots: int) -> None:
        rng = np.random.default_rng(0)
        self._shots, self._ious = shots, {name: IoU() for name in sets}
        probabilities, truths = [], []
        for name, iou in self._ious.items():
            for episode in tqdm(sets[name], f"{name}, {shots} shots"):
                result = model.predict(
                    episode.query, episode.supports[:shots], episode.masks[:shots]
                )
                p = result.probability.numpy()
                above = np.stack([p > threshold for threshold in THRESHOLDS])
                iou.add(episode.category, above, episode.target)
                chosen = rng.choice(p.size, PIXELS, replace=False)
                chosen = chosen[episode.target.ravel()[chosen] < 2]
                probabilities.append(p.ravel()[chosen])
                truths.append(episode.target.ravel()[chosen])
        self._probability = torch.from_numpy(np.concatenate(probabilities))
        self.truth = torch.from_numpy(np.concatenate(truths)).long()

    def threshold(self) -> float:
        """Return the largest threshold with about the best class mIoU, the mean over the sets."""
        means = np.mean([iou.mean() for iou in self._ious.values()], axis=0)
        return float(THRESHOLDS[np.flatnonzero(means >= means.max() - TOLERATED)[-1]])

    def report(self) -> str:
        """Describe the scores at 0.5 and at the threshold."""
        places = [int(np.abs(THRESHOLDS - t).argmin()) for t in (0.5, self.threshold())]
        return "\n".join(
            f"{name}, {self._shots} shots: "
            + " → ".join(f"{iou.mean()[place]:.3f}" for place in places)
            for name, iou in self._ious.items()
        )

    def calibrated(self, calibration: Calibration) -> torch.Tensor:
        """Return the probabilities (n,) of the pixels after calibration."""
        scores = torch.stack([1 - self._probability, self._probability])
        return calibration(scores[None, :, None], self._shots)[0, 1, 0]


def fit_calibration(sweeps: list[Sweep]) -> dict[str, float]:
    """Find the arguments of `Calibration` for the answers with one support and with five."""
    one, five = torch.tensor([sweep.threshold() for sweep in sweeps])
    growth = (five.logit() - one.logit()).item() / math.log(SHOTS)
    thresholds = {"threshold": round(one.item(), 3), "growth": round(growth, 3)}
    return {"temperature": fit_temperature(sweeps, **thresholds), **thresholds}


def fit_temperature(sweeps: list[Sweep], **thresholds: float) -> float:
    """Find the temperature with the least cross-entropy."""

    def loss(temperature: float) -> float:
        p, truth = pixels(sweeps, Calibration(temperature, **thresholds))
        return F.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), truth.float()).item()

    return round(float(min(TEMPERATURES, key=loss)), 3)


def pixels(sweeps: list[Sweep], calibration: Calibration) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the calibrated probabilities (n,) of all answers, and what the pixels show."""
    p = torch.cat([sweep.calibrated(calibration) for sweep in sweeps])
    return p, torch.cat([sweep.truth for sweep in sweeps])


def main() -> None:
    """Choose, fit, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("photos", type=Path, help="folder that photographs.py wrote")
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("out", type=Path, help="folder for config.json and the weights")
    parser.add_argument("--backbone", default="lite0", choices=BACKBONES)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    composed = ComposedEpisodes(args.data, "val", seed=0)
    sets = {"composed": [composed[i] for i in range(EPISODES)]}
    for name in CHOSEN_ON:
        episodes = PhotoEpisodes(args.photos / name, seed=0)
        sets[name] = [episodes[i] for i in range(EPISODES)]
    trained = with_options(HDMNet.from_pretrained(args.run), frozen_norm=True)
    sweeps = [Sweep(trained.fused(), sets, shots) for shots in (1, SHOTS)]
    fitted = fit_calibration(sweeps)
    logger.info("calibration: %s", fitted)
    for sweep in sweeps:
        logger.info("%s", sweep.report())
    for name, calibration in {
        "neither": Calibration(),
        "the best temperature alone": Calibration(fit_temperature(sweeps)),
        "both": Calibration(**fitted),
    }.items():
        p, truth = pixels(sweeps, calibration)
        error = binary_calibration_error(p, truth, n_bins=BINS).item()
        logger.info("expected calibration error with %s: %.4f", name, error)

    model = with_evidence(with_options(trained, calibration=fitted), args.backbone)
    source = PascalVOC(args.photos / "VOC2012", "trainaug")
    labels = [source.classes.index(name) + 1 for name in sorted(VALIDATION["VOC2012"])]
    presence = fit_presence(model, source, labels, shots=SHOTS, episodes=100, seed=0)
    with_options(model, presence=presence).save_pretrained(args.out)
    logger.info("presence: %s", {k: v for k, v in presence.items() if k != "center"})
    halve(args.out)


def with_evidence(model: HDMNet, backbone: str) -> HDMNet:
    """Let presence compare by the classifier of the backbone."""
    evidence = class_evidence(backbone)
    given = model.config["presence"] or {"scale": 1.0, "bias": 0.0, "center": []}
    presence = given | {"evidence": list(evidence.units)}
    changed = HDMNet(**(model.config | {"presence": presence})).eval()
    own = {f"presence.evidence.{name}": x for name, x in evidence.state_dict().items()}
    changed.load_state_dict(model.state_dict() | own)
    return changed


def halve(folder: Path) -> None:
    """Store the weights in a folder as float16."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(save(halved, {"format": "pt"}))
    temporary.replace(file)
    logger.info("%s: %.1f MB", file, file.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
