"""Fit `presence`, the estimate of whether a query shows any of the class, and report what it gives.

    python examples/fit_presence.py pascal VOCdevkit/VOC2012 --fit bottle,car,cat --test dog,sheep
    python examples/fit_presence.py folders MY_DATA --out my_model

Each episode has two queries: one that shows the class, and one that does not. The center is the
mean of the features of images that show a class of `--fit`. A logistic regression on the cosines of
these classes gives scale and bias. Answers with a presence below 0.1 are lowered. The report is of
the classes of `--test`, with one support and with all.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hdmnet import HDMNet, Segmentation, load_mask
from hdmnet.data import VOID, EpisodeSampler, LabelledImages, MaskFolders, PascalVOC
from hdmnet.data.episodes import MIN_AREA
from hdmnet.preprocess import IGNORE, resize_image

logger = logging.getLogger(__name__)

IMAGES = 300  # whose mean is the center
THRESHOLD = 0.35  # below which the model lowers its answers, place by place


class Answered(NamedTuple):
    """The answer to one query."""

    shots: int
    shown: bool
    """Whether the query shows the class."""
    answer: Segmentation
    """As it is, whatever its presence."""
    target: Tensor
    """(H, W): 1 = object, 0 = background, 255 = ignore."""

    def iou(self, mask: Tensor) -> float:
        """Compute the IoU of a mask."""
        a, b = mask[self.target != IGNORE], self.target[self.target != IGNORE] == 1
        return (a & b).sum().item() / max((a | b).sum().item(), 1)


def mean_feature(model: HDMNet, source: LabelledImages, classes: list[int]) -> Tensor:
    """Average f4, (C,), over images that show one of the classes."""
    listed = [i for i, area in enumerate(source.areas()) if not area.keys().isdisjoint(classes)]
    means, size = [], (model.image_size, model.image_size)
    for index in tqdm(listed[:: -(-len(listed) // IMAGES)], "center"):
        image = model.backbone.normalise(resize_image(source.image(index), size))
        with torch.inference_mode():
            means.append(model.backbone(image[None])[2].mean(dim=(0, 2, 3)))
    return torch.stack(means).mean(dim=0)


def answers(
    model: HDMNet,
    source: LabelledImages,
    classes: list[int],
    *,
    shots: int,
    episodes: int,
    seed: int,
    min_area: int = MIN_AREA,
) -> Iterator[Answered]:
    """Answer two queries of each episode, with its first support and with all supports."""
    areas, rng = source.areas(), np.random.default_rng(seed)
    sampler = EpisodeSampler(
        source,
        classes,
        shots=shots,
        length=episodes,
        seed=seed,
        min_area=min_area,
        order="balanced",
    )
    for query, supports, label in tqdm(sampler, "episodes"):
        without = [i for i in range(len(source)) if label not in areas[i]]
        images = [source.image(i) for i in supports]
        masks = [load_mask(source.label(i), label=label, ignore=VOID) for i in supports]
        encoded = [model.encode_supports(x, m) for x, m in zip(images, masks, strict=True)]
        for used in dict.fromkeys((1, shots)):
            support_set = encoded[0].merge(*encoded[1:used])
            for shown, index in ((True, query), (False, int(rng.choice(without)))):
                image, labels = source.image(index), torch.from_numpy(source.label(index))
                answer = model.predict(image, support_set, presence_threshold=0)
                target = (labels == label).byte().masked_fill(labels == VOID, IGNORE)
                yield Answered(used, shown, answer, target)


def fit_presence(
    model: HDMNet, source: LabelledImages, classes: list[int], **drawn: int
) -> dict[str, Any]:
    """Fit the argument `presence` of a model on some classes; `drawn` is as for `answers`.

    A model with `contrast` keeps its center: it was trained with it.
    """
    if model.config["contrast"]:
        center = list(model.presence.center)
    else:
        center = [round(x, 3) for x in mean_feature(model.fused(), source, classes).tolist()]
    # What it compares is not fitted.
    given = model.config["presence"] or {}
    kept = {"center": center} | {k: v for k, v in given.items() if k == "evidence"}
    unfitted = {"scale": 1.0, "bias": 0.0} | kept
    results = list(
        answers(with_options(model, presence=unfitted).fused(), source, classes, **drawn)
    )
    x = torch.tensor([r.answer.presence for r in results]).logit()
    scale, bias = logistic_regression(x, torch.tensor([float(r.shown) for r in results]))
    return {"scale": round(scale, 3), "bias": round(bias, 3), "threshold": THRESHOLD} | kept


def logistic_regression(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Find the a and b that maximise the likelihood of y (n,) under σ(a x + b)."""
    weight = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(weight[0] * x + weight[1], y)
        value.backward()
        return value

    optimiser.step(loss)
    return weight[0].item(), weight[1].item()


def report(model: HDMNet, results: list[Answered], shots: int) -> str:
    """Describe the answers with K = `shots`: a row for each threshold, and one for the model's."""
    shown = [r for r in results if r.shots == shots and r.shown]
    absent = [r for r in results if r.shots == shots and not r.shown]
    low, high = (torch.tensor([r.answer.presence for r in part]) for part in (absent, shown))
    auroc = ((high[:, None] > low).float() + 0.5 * (high[:, None] == low)).mean()
    lines = [
        f"{shots} shots, {len(shown)} queries with the class and {len(absent)} without: "
        f"AUROC {auroc:.3f}",
        "| presence_threshold | mean IoU, shown | kept, shown | kept, absent | area, absent |",
        "|---|---|---|---|---|",
    ]
    for threshold in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        kept = [float((p >= threshold).float().mean()) for p in (high, low)]
        found = [r.answer.emptied_below(threshold).mask for r in (*shown, *absent)]
        lines.append(row(str(threshold), shown, found, *kept))
    found = [r.answer.lowered().mask for r in (*shown, *absent)]
    lines.append(row(f"None: {model.presence.threshold}", shown, found, 1, 1))
    return "\n".join(lines)


def row(
    name: str, shown: list[Answered], masks: list[Tensor], kept: float, kept_absent: float
) -> str:
    """Format a row of the report. `masks` has those of `shown`, and then those of the others."""
    iou = np.mean([r.iou(mask) for r, mask in zip(shown, masks, strict=False)])
    area = np.mean([mask.float().mean().item() for mask in masks[len(shown) :]])
    return f"| {name} | {iou:.3f} | {kept:.2f} | {kept_absent:.2f} | {area:.3f} |"


def labels_of(names: str | None, source: LabelledImages) -> list[int]:
    """Turn names with commas between them into labels; None means all."""
    chosen = source.classes if names is None else names.split(",")
    return [source.classes.index(name) + 1 for name in chosen]


def main() -> None:
    """Parse the command line, fit, report, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("pascal", "folders"))
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("--list", default="val", help="list of images, for pascal")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--fit", help="classes to fit on, with commas between them")
    parser.add_argument("--test", help="classes to report on; default: those of --fit")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to save the model to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pascal = args.data == "pascal"
    source = PascalVOC(args.root, args.list) if pascal else MaskFolders(args.root)

    model = HDMNet.from_pretrained(args.model)
    drawn = {"shots": args.shots, "episodes": args.episodes, "seed": args.seed}
    drawn["min_area"] = MIN_AREA if pascal else 1  # as `hdmnet evaluate`
    presence = fit_presence(model, source, labels_of(args.fit, source), **drawn)
    fitted = with_options(model, presence=presence)
    tested = labels_of(args.test or args.fit, source)
    results = list(answers(fitted.fused(), source, tested, **drawn))
    logger.info("%s", {name: value for name, value in presence.items() if name != "center"})
    for shots in dict.fromkeys((1, args.shots)):
        logger.info("%s", report(fitted, results, shots))
    if args.out:
        fitted.save_pretrained(args.out)


def with_options(model: HDMNet, **options: Any) -> HDMNet:
    """Make a copy of the model with other arguments that change no weight."""
    changed = HDMNet(**(model.config | options)).eval()
    changed.load_state_dict(model.state_dict())
    return changed


if __name__ == "__main__":
    main()
