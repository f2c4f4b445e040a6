"""Train the matching network on cached features with the paper's loss.

python train.py DATA RUN
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from cache import SIZE, build_model
from episodes import IGNORE, OBJECT, Batch, Episodes
from torch import Tensor
from tqdm import trange

from hdmnet import EpisodeLoss, HDMNet, HDMNetOutput

logger = logging.getLogger(__name__)

GROUPS, QUERIES = 4, 2
"""Episodes per step, and queries per episode, which share its supports."""
SHOTS = {1: 0.3, 2: 0.15, 3: 0.15, 4: 0.1, 5: 0.3}
"""Probability of each number of shots."""
ACROSS = {1: 0.4, 2: 0.45, 3: 0.5, 4: 0.6, 5: 0.6}
"""Share of the episodes that show different objects of a category, for each number of shots: half
overall. It grows with the shots, because five pictures of one object teach little more than one."""
LEARNING_RATE, HEAD_MULTIPLIER, WEIGHT_DECAY = 5e-4, 2.0, 0.01
WARM_UP, POLY = 50, 0.9
FREEZE_NORMS = 0.35
"""Share of the steps in which the head's BatchNorms update their statistics: training is faster.
Then they are frozen, as always in the paper, so that training normalises as prediction does."""


def run_batch(model: HDMNet, batch: Batch) -> HDMNetOutput:
    """Run the forward pass on cached features."""
    channels = list(model.backbone.channels)

    def levels(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2, f3, f4 = x.contiguous(memory_format=torch.channels_last).split(channels, dim=1)
        return f2, f3, f4

    supports = model.encode_features(levels(batch.supports), batch.masks)
    return model.match_features(levels(batch.queries), supports, (SIZE, SIZE))


@torch.inference_mode()
def validate(model: HDMNet, episodes: Episodes, *, shots: int, count: int) -> float:
    """Measure the class mIoU over episodes of different photographs, the same at every call."""
    model.eval()
    rng = np.random.default_rng(0)
    inter: dict[str, int] = defaultdict(int)
    union: dict[str, int] = defaultdict(int)
    for _ in range(count):
        batch = episodes.batch(rng, groups=1, shots=5, queries=QUERIES, across=1.0)
        batch = Batch(  # drawn with 5 shots, so every number of shots has the same queries
            batch.supports[:shots],
            batch.masks[:, :shots],
            batch.queries,
            batch.targets,
            batch.categories,
        )
        predicted = run_batch(model, batch).final.argmax(dim=1) == 1
        valid, truth = batch.targets != IGNORE, batch.targets == OBJECT
        inter[batch.categories[0]] += int((predicted & truth & valid).sum())
        union[batch.categories[0]] += int(((predicted | truth) & valid).sum())
    return float(np.mean([inter[name] / union[name] for name in union]))


def train(data: Path, run: Path, *, steps: int, seed: int, distillation: bool, every: int) -> None:
    """Train, and write the model and a log entry to `run` every `every` steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    training = Episodes(data / "features" / "train")
    validation = Episodes(data / "features" / "val")
    model = build_model(frozen_norm=False).to(memory_format=torch.channels_last)
    loss_of = EpisodeLoss()
    optimiser = torch.optim.AdamW(
        model.param_groups(LEARNING_RATE, head_multiplier=HEAD_MULTIPLIER),
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1.0, (i + 1) / WARM_UP) * (1 - i / steps) ** POLY
    )
    run.mkdir(parents=True, exist_ok=True)
    running: dict[str, float] = {}
    for step in (progress := trange(1, steps + 1)):
        model.frozen_norm = step > FREEZE_NORMS * steps
        model.train()
        shots = int(rng.choice(list(SHOTS), p=list(SHOTS.values())))
        batch = training.batch(
            rng, groups=GROUPS, shots=shots, queries=QUERIES, across=ACROSS[shots]
        )
        losses = loss_of(run_batch(model, batch), batch.targets)
        loss = losses.total if distillation else losses.segmentation
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        for name in ("segmentation", "distillation"):
            value = float(getattr(losses, name).detach())
            running[name] = 0.98 * running.get(name, value) + 0.02 * value
        progress.set_postfix({name: f"{value:.3f}" for name, value in running.items()})
        if step % every == 0 or step == steps:
            entry = {"step": step, **running}
            for k in (1, 5):
                entry[f"val_miou_{k}shot"] = validate(model, validation, shots=k, count=80)
            logger.info("%s", entry)
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            model.save_pretrained(run)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder with the features of cache.py")
    parser.add_argument("run", type=Path, help="folder for the model and its log")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--every", type=int, default=650, help="steps between validations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--no-distillation", action="store_true", help="train without this loss")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    train(
        args.data,
        args.run,
        steps=args.steps,
        seed=args.seed,
        distillation=not args.no_distillation,
        every=args.every,
    )


if __name__ == "__main__":
    main()
