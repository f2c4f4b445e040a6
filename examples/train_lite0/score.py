"""Measure models and baselines on classes that training never showed, and draw the worst answers.

    python score.py DATA PHOTOS OUT hdmnet-lite0 hdmnet-lite0@1

All models answer the same episodes: composed pictures of the held-out folders, and photographs of
the validation classes. One-shot episodes are the five-shot ones with their first support. OUT gets
`scores.md`, `scores.json`, and a picture of the first model's worst one-shot answers in each set.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from held_out import SHOTS, ComposedEpisodes, Episode, IoU, PhotoEpisodes
from photos import VALIDATION
from PIL import Image
from torch.nn.functional import interpolate
from tqdm import tqdm
from variants import load_prototypes

from hdmnet import FewShotModel, HDMNet, Segmentation
from hdmnet.images import load_image

sys.path.append(str(Path(__file__).parents[1]))
from own_network import PrototypeNet

logger = logging.getLogger(__name__)

THRESHOLDS = np.linspace(0, 1, 101)
PROTOTYPES = "a trained prototype network, at its best threshold"
WORST = 10
TILE = 160
"""Height and width of each picture of `worst`, in pixels."""


@dataclass(frozen=True)
class Score:
    """Class mIoU of one network on one set of episodes."""

    network: str
    episodes: str
    shots: int
    count: int
    miou: float
    interval: tuple[float, float]  # bootstrap, 95 %
    classes: dict[str, float]

    @classmethod
    def of(cls, network: str, episodes: str, shots: int, iou: IoU) -> Score:
        """Summarise the counts."""
        classes = {name: round(float(value), 4) for name, value in iou.per_class().items()}
        return cls(
            network, episodes, shots, len(iou.each), float(iou.mean()), iou.interval(), classes
        )


def answered(result: Segmentation) -> np.ndarray:
    """Return the mask (H, W)."""
    return result.mask.numpy()


def above_thresholds(values: np.ndarray) -> np.ndarray:
    """Return the masks (101, H, W) of values (H, W) at all thresholds."""
    return np.stack([values > threshold for threshold in THRESHOLDS])


def answered_at_thresholds(result: Segmentation) -> np.ndarray:
    """Return the masks (101, H, W) at all thresholds."""
    return above_thresholds(result.probability.numpy())


def measure(
    model: FewShotModel,
    episodes: list[Episode],
    shots: int,
    desc: str,
    masks: Callable[[Segmentation], np.ndarray] = answered,
) -> IoU:
    """Measure the class mIoU of `predict`."""
    iou = IoU()
    for episode in tqdm(episodes, desc):
        result = model.predict(episode.query, episode.supports[:shots], episode.masks[:shots])
        iou.add(episode.category, masks(result), episode.target)
    return iou


def measure_all_foreground(episodes: list[Episode]) -> IoU:
    """Measure the class mIoU of predicting foreground everywhere."""
    iou = IoU()
    for episode in episodes:
        iou.add(episode.category, np.ones(episode.target.shape, bool), episode.target)
    return iou


def measure_prior(model: HDMNet, episodes: list[Episode]) -> IoU:
    """Measure the training-free one-shot prior: the better of f3 and f4, at its best threshold."""
    ious = (IoU(), IoU())  # priors of f3 and f4
    for episode in tqdm(episodes, desc="prior"):
        supports = model.encode_supports(episode.supports[0], episode.masks[0])
        image = load_image(episode.query)[None]
        image = interpolate(image, (model.image_size,) * 2, mode="bilinear", antialias=True)
        with torch.inference_mode():
            prior = model.match(model.backbone.normalise(image), supports).prior
        maps = interpolate(prior[:, :2], episode.target.shape, mode="bilinear")[0].numpy()
        for iou, values in zip(ious, maps, strict=True):
            iou.add(episode.category, above_thresholds(values), episode.target)
    best = max(ious, key=lambda iou: iou.mean().max())
    return best.at(int(best.mean().argmax()))


def draw_worst(model: FewShotModel, episodes: list[Episode], iou: IoU, file: Path) -> None:
    """Draw the worst one-shot answers: support with mask, query with truth, query with answer."""
    worst = np.argsort(iou.each)[:WORST]
    sheet = Image.new("RGB", (6 * TILE + 20, TILE * -(-len(worst) // 2)), "white")
    for place, number in enumerate(worst):
        e = episodes[number]
        answer = model.predict(e.query, e.supports[0], e.masks[0])
        truth = Segmentation(torch.from_numpy((e.target == 1).astype(np.float32)))
        shown = Segmentation(torch.from_numpy((e.masks[0] == 1).astype(np.float32)))
        pictures = [
            shown.overlay(e.supports[0], color=(0, 160, 80)),
            truth.overlay(e.query, color=(0, 160, 80)),
            answer.overlay(e.query),
        ]
        for column, picture in enumerate(pictures):
            left = (3 * (place % 2) + column) * TILE + 20 * (place % 2)
            sheet.paste(picture.resize((TILE, TILE)), (left, place // 2 * TILE))
    sheet.save(file)


def table(scores: list[Score]) -> str:
    """Format the scores: a row for each network, a column for each set and number of shots."""
    columns = list(dict.fromkeys((s.episodes, s.shots, s.count) for s in scores))
    head = " | ".join(f"{name}, {k} shot{'s' * (k > 1)} ({n})" for name, k, n in columns)
    rows = [f"| class mIoU | {head} |", "|---" * (len(columns) + 1) + "|"]
    for network in dict.fromkeys(s.network for s in scores):
        found = {(s.episodes, s.shots): s for s in scores if s.network == network}
        cells = [
            f"{s.miou:.3f} ({s.interval[0]:.3f} to {s.interval[1]:.3f})" if s else ""
            for s in (found.get((name, k)) for name, k, _ in columns)
        ]
        rows.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Parse the command line, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("photos", type=Path, help="folder that photographs.py wrote")
    parser.add_argument("out", type=Path, help="folder for figures and pictures")
    parser.add_argument("models", nargs="+", help="names, folders or Hub repositories")
    parser.add_argument("--prototypes", type=Path, help="RUN/variant of a prototype network")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of composites")
    parser.add_argument("--composed", type=int, default=210, help="number of composed episodes")
    parser.add_argument("--real", type=int, default=180, help="of each set of photographs")
    parser.add_argument("--seed", type=int, default=2023)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    composed = ComposedEpisodes(args.data, args.split, args.seed)
    sets = {"composed": [composed[i] for i in tqdm(range(args.composed), "episodes")]}
    for name in VALIDATION:
        photos = PhotoEpisodes(args.photos / name, args.seed)
        sets[name] = [photos[i] for i in tqdm(range(args.real), "episodes")]
    models: dict[str, FewShotModel] = {
        Path(name).name: HDMNet.from_pretrained(name).fused() for name in args.models
    }
    first = next(iter(models.values()))
    assert isinstance(first, HDMNet)
    prototypes = PrototypeNet(image_size=first.image_size).eval()
    prototypes.backbone = first.backbone
    models["prototypes of ImageNet features, not trained"] = prototypes
    trained = load_prototypes(args.prototypes) if args.prototypes else None
    if trained:
        trained.image_size = first.image_size
    args.out.mkdir(parents=True, exist_ok=True)
    scores = []
    for name, episodes in sets.items():
        for network, model in models.items():
            for shots in (1, SHOTS):
                iou = measure(model, episodes, shots, f"{network}, {name}, {shots} shots")
                scores.append(Score.of(network, name, shots, iou))
                if model is first and shots == 1:
                    draw_worst(model, episodes, iou, args.out / f"worst_{name}.jpg")
        for shots in (1, SHOTS):
            if trained:
                desc = f"{PROTOTYPES}, {name}"
                iou = measure(trained, episodes, shots, desc, answered_at_thresholds)
                best = iou.at(int(iou.mean().argmax()))
                scores.append(Score.of(PROTOTYPES, name, shots, best))
        prior = measure_prior(first, episodes)
        scores.append(Score.of("the prior alone, at its best threshold", name, 1, prior))
        scores.append(Score.of("all foreground", name, 1, measure_all_foreground(episodes)))
    (args.out / "scores.json").write_text(json.dumps([asdict(s) for s in scores], indent=1))
    (args.out / "scores.md").write_text(table(scores) + "\n")
    logger.info("%s", table(scores))


if __name__ == "__main__":
    main()
