"""Train a base learner (a PSPNet) from ImageNet weights: the first of the paper's two stages.

The second stage trains the matching network: `finetune_torch.py DATA RUN2 --model RUN/model`.

    python examples/train_base_learner.py DATA RUN
"""

import json
import logging
from argparse import Namespace

import torch
import torch.nn.functional as F
from particles import arguments, choose_device, make, open_split, parse, resizing
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.data import BaseDataset, TrainTransform

logger = logging.getLogger(__name__)


def base_logits(model: HDMNet, images: Tensor) -> Tensor:
    """Compute the logits (B, 1 + n, H, W) of background and n base classes."""
    assert model.psp is not None and model.base_learner is not None  # noqa: PT018
    _, _, f4 = model.backbone(images)
    logits = model.base_learner(model.psp(f4))
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=True)


def measure(model: HDMNet, dataset: BaseDataset) -> float:
    """Measure the mIoU of the base classes, without background."""
    classes = model.config["base_classes"] + 1
    metric = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
    model.eval()
    for item in tqdm(DataLoader(dataset), desc="val", leave=False):
        with torch.inference_mode():
            logits = base_logits(model, item["image"].to(choose_device())).cpu()
        size = item["target"].shape[-2:]
        labels = F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(dim=1)
        metric.update(labels, item["target"].long())
    model.train()
    return metric.compute()[1:].mean().item()


def train(args: Namespace) -> None:
    """Train backbone, PSP head and classifier: the first stage of BAM (arXiv 2203.07615)."""
    torch.manual_seed(0)
    make(args.data, args.count)
    source = open_split(args.data, "train")
    base_classes = range(1, len(source.classes) + 1)
    if args.start:  # take only its backbone: the bundled model has ImageNet weights there
        start = HDMNet.from_pretrained(args.start)
        config = start.config | {"base_classes": len(base_classes), "frozen_norm": False}
        model = HDMNet(**config)
        model.backbone.load_state_dict(start.backbone.state_dict())
    else:
        model = HDMNet(
            args.backbone,
            base_classes=len(base_classes),
            frozen_norm=False,
            pretrained_backbone=True,
        )
    assert model.psp is not None and model.base_learner is not None  # noqa: PT018
    model.to(choose_device())
    head = [*model.psp.parameters(), *model.base_learner.parameters()]
    groups = [
        {"params": list(model.backbone.parameters()), "lr": args.lr},
        {"params": head, "lr": 10 * args.lr},
    ]
    # The paper uses SGD for many epochs; AdamW needs fewer steps.
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, args.steps, power=0.9)
    mean, std = model.backbone.mean, model.backbone.std
    dataset = BaseDataset(source, base_classes, TrainTransform(args.size, mean=mean, std=std))
    val = BaseDataset(open_split(args.data, "val"), base_classes, resizing(model))
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=len(dataset) > args.batch)

    curve = [(0, measure(model, val))]
    bar = tqdm(total=args.steps)
    while bar.n < args.steps:
        dataset.set_epoch(bar.n)
        for batch in loader:
            batch = {name: value.to(choose_device()) for name, value in batch.items()}
            logits = base_logits(model, batch["image"])
            loss = F.cross_entropy(logits, batch["target"].long(), ignore_index=255)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.update()
            if bar.n % args.every == 0 or bar.n == args.steps:
                curve.append((bar.n, measure(model, val)))
                logger.info("step %d: loss %.3f, base mIoU %.3f", bar.n, loss.item(), curve[-1][1])
            if bar.n == args.steps:
                break
    model.frozen_norm = True  # the second stage keeps the norms frozen, as in the paper
    model.save_pretrained(args.run / "model")
    (args.run / "curve.json").write_text(json.dumps(curve))


def main() -> None:
    """Parse the command line and train."""
    parser = arguments(__doc__, steps=400, batch=8, lr=2e-4)
    parser.add_argument("--start", default="hdmnet-lite0", help="model to take the backbone from")
    parser.add_argument("--backbone", help="download this timm backbone instead of --start")
    args = parse(parser)
    args.start = None if args.backbone else args.start
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args)


if __name__ == "__main__":
    main()
