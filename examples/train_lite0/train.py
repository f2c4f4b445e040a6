"""Train the matching network on cached features with the paper's loss.

    python train.py DATA RUN

RUN gets the model, a log, and the state to go on with if the command is interrupted and repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from episodes import OBJECT, ROUGH, Batch, Episodes, Mixture, Mode
from features import F4, IGNORE, SIZE, features_folder
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange
from variants import build_variant

from hdmnet import EpisodeLoss, HDMNet, HDMNetOutput
from hdmnet.nn.priors import foreground_features, mean_feature

logger = logging.getLogger(__name__)

GROUPS, QUERIES = 4, 2
"""Episodes per step, and queries per episode, which share its supports."""
SETS = {"composed": 1.0, "VOC2012": 0.65, "CCP": 0.35, "CarParts": 0.0}
"""Sets of scenes: share of the episodes with composed scenes, or with real photographs. Car parts
are for validation only."""
SHOTS = {1: 0.35, 2: 0.15, 3: 0.15, 4: 0.1, 5: 0.25}
"""Probability of each number of shots."""
RIVALS = {0: 0.4, 1: 0.4, 2: 0.2}
"""Probability of each number of other classes that the model knows of, with `contrast`."""
WEIGHT_DECAY = 0.01
WARM_UP, POLY = 50, 0.9
THRESHOLDS = np.linspace(0.1, 0.9, 17)
CHECKED = 60
"""Episodes of each validation set."""


@dataclass(frozen=True)
class Settings:
    """What a run can change: `--set name=value`."""

    backbone: str = "lite0"
    size: int = SIZE  # height and width of the cached scenes
    init: str = "hdmnet-lite0@1"  # weights to start from, see `start_from`; or nothing
    steps: int = 2800
    seed: int = 0
    learning_rate: float = 3e-4
    head_multiplier: float = 2.0
    shots: int = 5  # most supports of an episode
    real: float = 0.55  # share of the episodes that show real photographs
    same: float = 0.25  # share of the episodes with one object, or photograph
    own: float = 0.25  # share of the one-shot episodes that segment the support itself
    absent: float = 0.1  # share of the queries that do not show the class
    rough: float = ROUGH  # share of the episodes whose supports may have rough masks
    distillation: float = 1.0  # weight of this loss
    dice: float = 1.0  # weight of the Dice loss
    average: float = 0.998  # decay of the moving average of the weights
    free_norms: float = 0.35  # share of the steps in which the head's BatchNorms learn statistics
    high_level: int = 0  # 1: the tokens are made of f4, too
    contrast: int = 1  # the model compares a class with its rivals; 0: it does not
    stages: int = 3
    matching: str = "cosine"  # or "dot", "prototype": see variants.py
    prior: int = 1  # 0: without the prior
    dim: int = 64
    dropout: float = 0.1
    feature_dropout: float = 0.2

    @classmethod
    def parse(cls, assignments: list[str]) -> Settings:
        """Make settings of `name=value` texts."""
        kinds: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
        values = dict(text.split("=", 1) for text in assignments)
        if unknown := values.keys() - kinds.keys():
            raise ValueError(f"unknown settings {sorted(unknown)}; there are {', '.join(kinds)}")
        return cls(**{name: kinds[name](value) for name, value in values.items()})

    def sets(self, split: str) -> dict[str, float]:
        """Return the share of each set of scenes."""
        shares = {k: (1 - self.real if k == "composed" else self.real * v) for k, v in SETS.items()}
        return {f"{name}-{split}": share for name, share in shares.items() if share}

    def modes(self, shots: int) -> dict[Mode, float]:
        """Return the probability of each kind of episode."""
        own = self.own if shots == 1 else 0.0
        return {"across": 1 - self.same - own, "same": self.same, "self": own}


def start_from(model: HDMNet, names: str) -> None:
    """Copy the weights of another model, or the mean of several (names with commas between them).

    A convolution with more inputs than there were (the map of `contrast`, f4 with `high_level`)
    has zeros for the new ones.

    Source of the mean: Model soups (arXiv 2203.05482).
    """

    def padded(old: Tensor, own: Tensor) -> Tensor:
        missing = own.shape[1] - old.shape[1] if own.dim() == 4 else 0
        return F.pad(old, (0, 0, 0, 0, 0, missing)) if missing > 0 else old

    others = [HDMNet.from_pretrained(name).state_dict() for name in names.split(",")]
    for key, own in model.state_dict().items():
        own.copy_(sum(padded(other[key], own) for other in others) / len(others))


def run_batch(model: HDMNet, batch: Batch) -> HDMNetOutput:
    """Run the forward pass on cached features."""
    channels = list(model.backbone.channels)

    def levels(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2, f3, f4 = x.contiguous(memory_format=torch.channels_last).split(channels, dim=1)
        return f2, f3, f4

    supports = model.encode_features(levels(batch.supports), batch.masks)
    if len(batch.rivals):
        f4 = levels(batch.rivals)[2].unflatten(0, batch.rival_masks.shape[:2])
        means = mean_feature(foreground_features(f4, batch.rival_masks))
        supports = replace(supports, rivals=means.unflatten(0, (len(batch.masks), -1)))
    height, width = batch.targets.shape[-2:]
    return model.match_features(levels(batch.queries), supports, (height, width))


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Return 1 - Dice, the mean over the queries (B, H, W) that show the object."""
    truth, valid = (target == OBJECT).float(), (target != IGNORE).float()
    overlap = (probability * truth).sum((1, 2))
    size = (probability * valid).sum((1, 2)) + truth.sum((1, 2))
    shown = (truth.sum((1, 2)) > 0).float()
    return (shown * (1 - 2 * overlap / size.clamp(min=1))).sum() / shown.sum().clamp(min=1)


@torch.inference_mode()
def validate(model: HDMNet, episodes: Episodes, *, shots: int) -> np.ndarray:
    """Measure the class mIoU at each threshold, over the same episodes at every call."""
    rng = np.random.default_rng(0)
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, len(THRESHOLDS))))
    for _ in range(CHECKED):
        batch = episodes.episode(rng, shots=5, queries=QUERIES, absent=0, flip=False)
        # Drawn with 5 shots, so every number of shots has the same queries.
        batch = replace(batch, supports=batch.supports[:shots], masks=batch.masks[:, :shots])
        probability = run_batch(model, batch).final[:, 1].numpy()
        truth, valid = batch.targets.numpy() == OBJECT, batch.targets.numpy() != IGNORE
        for i, threshold in enumerate(THRESHOLDS):
            above = (probability > threshold) & valid
            sums[batch.categories[0]][:, i] += (above & truth).sum(), (above | truth).sum()
    return np.mean([inter / union for inter, union in sums.values()], axis=0)


class Run:
    """A training run in a folder."""

    def __init__(
        self,
        data: Path,
        folder: Path,
        settings: Settings,
        *,
        validation: Sequence[str] = tuple(SETS),
    ) -> None:
        self._folder, self._settings = folder, settings
        features = features_folder(data, settings.backbone, settings.size)
        shares = settings.sets("train")
        self._training = Mixture({features / name: share for name, share in shares.items()})
        self._validation = {name: features / f"{name}-val" for name in validation}
        center = self._training.mean_f4(F4[settings.backbone])
        presence = {"scale": 10.0, "bias": -5.0, "center": center}
        torch.manual_seed(settings.seed)
        self._rng = np.random.default_rng(settings.seed)
        self._model = build_variant(
            settings.backbone,
            stages=settings.stages,
            matching=settings.matching,
            image_size=settings.size,
            prior=bool(settings.prior),
            frozen_norm=False,
            high_level=bool(settings.high_level),
            contrast=bool(settings.contrast),
            presence=presence if settings.contrast else None,
            dim=settings.dim,
            dropout=settings.dropout,
            feature_dropout=settings.feature_dropout,
        ).to(memory_format=torch.channels_last)
        if settings.init:
            start_from(self._model, settings.init)
        self._average = AveragedModel(
            self._model, multi_avg_fn=get_ema_multi_avg_fn(settings.average)
        )
        self._loss = EpisodeLoss()
        self._optimiser = torch.optim.AdamW(
            self._model.param_groups(
                settings.learning_rate, head_multiplier=settings.head_multiplier
            ),
            weight_decay=WEIGHT_DECAY,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser,
            lambda i: min(1.0, (i + 1) / WARM_UP) * (1 - i / settings.steps) ** POLY,
        )
        self._step = 0
        self._running: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume()

    def train(self, every: int, until: int | None = None) -> None:
        """Train to the end, or until a step, and save every `every` steps."""
        steps, done = min(until or self._settings.steps, self._settings.steps), self._step
        progress = trange(done + 1, steps + 1, initial=done, total=steps)
        for step in progress:
            self._step = step
            self._train_step()
            progress.set_postfix({name: f"{value:.3f}" for name, value in self._running.items()})
            if step % every == 0 or step == steps:
                self._save()

    def _train_step(self) -> None:
        settings, model = self._settings, self._model
        model.frozen_norm = self._step > settings.free_norms * settings.steps
        model.train()
        drawn = int(self._rng.choice(list(SHOTS), p=list(SHOTS.values())))
        shots = min(settings.shots, drawn)
        rivals = int(self._rng.choice(list(RIVALS), p=list(RIVALS.values())))
        batch = self._training.batch(
            self._rng,
            groups=GROUPS,
            shots=shots,
            queries=QUERIES,
            modes=settings.modes(shots),
            rivals=rivals * settings.contrast,
            absent=settings.absent,
            rough=settings.rough,
        )
        output = run_batch(model, batch)
        losses = self._loss(output, batch.targets)
        loss = losses.segmentation + settings.distillation * losses.distillation
        if settings.dice:
            loss = loss + settings.dice * dice_loss(output.final[:, 1], batch.targets)
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimiser.step()
        self._schedule.step()
        self._average.update_parameters(model)
        for name in ("segmentation", "distillation"):
            value = float(getattr(losses, name).detach())
            self._running[name] = 0.98 * self._running.get(name, value) + 0.02 * value

    def _save(self) -> None:
        """Validate, and write the model, a line of the log and the state."""
        averaged = cast(HDMNet, self._average.module)
        for target, source in zip(averaged.buffers(), self._model.buffers(), strict=True):
            target.copy_(source)
        averaged.eval()
        entry = {"step": self._step, **self._running}
        for name, features in self._validation.items():
            episodes = Episodes(features)
            for k in (1, 5):
                found = validate(averaged, episodes, shots=k)
                best = int(found.argmax())
                entry[f"{name}_{k}shot"] = round(float(found[best]), 4)
                entry[f"{name}_{k}shot_threshold"] = round(float(THRESHOLDS[best]), 2)
        logger.info("%s", entry)
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        plain = self._settings.matching == "cosine" and self._settings.prior
        # Apart, because an HDMNet would load the weights of a variant, and compute something else.
        averaged.save_pretrained(self._folder if plain else self._folder / "variant")
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {
            "settings": asdict(self._settings),
            "step": self._step,
            "running": self._running,
            "numpy": self._rng.bit_generator.state,
            "torch": torch.get_rng_state(),
        }
        temporary = self._folder / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self._folder / "state.pt")

    def _resume(self) -> None:
        state = torch.load(self._folder / "state.pt", weights_only=True)
        if state["settings"] != asdict(self._settings):
            raise ValueError(
                f"{self._folder} has a run with other settings: {state['settings']}. Choose "
                "another folder, or remove it."
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._step, self._running = state["step"], state["running"]
        self._rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])
        logger.info("goes on after step %d", self._step)

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "average": self._average,
            "optimiser": self._optimiser,
            "schedule": self._schedule,
        }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder with the features of cache.py")
    parser.add_argument("run", type=Path, help="folder for the model, its log and its state")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings")
    parser.add_argument("--every", type=int, default=700, help="steps between validations")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop after this step")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    Run(args.data, args.run, Settings.parse(args.set)).train(args.every, args.until)


if __name__ == "__main__":
    main()
