"""Score a model on episodes, in one process or in several: the work of `hdmnet evaluate`."""

import json
import math
import os
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.utils import draw_segmentation_masks
from tqdm import tqdm

from hdmnet import FewShotModel, HDMNet
from hdmnet._files import write_whole
from hdmnet.cli.options import choose_device
from hdmnet.data import (
    FSS1000,
    CocoInstances,
    EpisodeDataset,
    EpisodeList,
    EpisodeSampler,
    EvalTransform,
    LabelledImages,
    MaskFolders,
    PairList,
    PascalVOC,
    coco_fold,
    pascal_fold,
)
from hdmnet.metrics import FewShotIoU


def open_source(args: SimpleNamespace) -> tuple[LabelledImages, tuple[int, ...] | None]:
    """Open the images. Return them with the classes of the fold, or None for all classes."""
    if args.data == "pascal":
        return PascalVOC(args.root, args.list or "val"), pascal_fold(args.fold)
    if args.data == "coco":
        table = args.root / "annotations" / "instances_val2014.json"
        source = CocoInstances(args.root / "val2014", table, crowd=args.crowd)
        return source, coco_fold(args.fold, args.coco_split)
    if args.data == "json":
        return CocoInstances(args.root, args.annotations, crowd=args.crowd), None
    if args.data == "fss":
        return FSS1000(args.root, args.list), None
    return MaskFolders(args.root), None


def choose_classes(
    source: LabelledImages, names: Sequence[str], fold: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Look up the names of `--class` among the classes of the fold, or among all.

    Raises:
        click.UsageError: If a name is not one of them.
    """
    if not names:
        return fold
    labels = fold or range(1, len(source.classes) + 1)
    known = {source.classes[label - 1]: label for label in labels}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"--class {unknown[0]}: expected one of {', '.join(known)}")
    return tuple(sorted({known[name] for name in names}))


def choose_episodes(args: SimpleNamespace) -> EpisodeList:
    """Load the episodes of `--load`, or draw them from `--pairs` or by the rules."""
    source, fold = open_source(args)
    if args.load:
        episodes = EpisodeList.load(args.load, source)
        if fold and not set(episodes.classes) <= set(fold):
            raise click.UsageError(f"{args.load} lists classes that are not in fold {args.fold}")
        return episodes
    classes = choose_classes(source, args.classes, fold)
    if args.pairs:
        seed, shots, length = args.seed, args.shots, args.episodes
        pairs = PairList(source, args.pairs, shots=shots, length=length, seed=seed)
        if classes and not set(pairs.classes) <= set(classes):
            asked = "asked for" if args.classes else f"in fold {args.fold}"
            raise click.UsageError(f"{args.pairs} lists classes that are not {asked}")
        return EpisodeList(source, pairs, classes)
    source.areas(args.cache)
    sampler = EpisodeSampler(
        source,
        classes,
        shots=args.shots,
        length=args.episodes,
        seed=args.seed,
        min_area=args.min_area,
        order=args.order,
        query_class=args.query_class,
    )
    return EpisodeList(source, sampler, sampler.classes)


def score(model: FewShotModel, episodes: EpisodeList, args: SimpleNamespace) -> dict[str, float]:
    """Compute the scores over all processes. Rank 0 also draws a few answers."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    mean, std, pad = model.backbone.mean, model.backbone.std, args.resize == "pad"
    transform = EvalTransform(model.image_size, mean=mean, std=std, keep_ratio=pad)
    dataset = EpisodeDataset(episodes, transform)
    mine = Subset(dataset, range(rank, len(dataset), world))
    heads = ("final", "meta") if isinstance(model, HDMNet) else ("final",)
    metric = FewShotIoU(dataset.class_names, heads=heads).to(args.device)
    loader = DataLoader(mine, num_workers=args.workers)
    for number, batch in enumerate(tqdm(loader, desc="episodes", disable=rank > 0)):
        batch = {name: value.to(args.device) for name, value in batch.items()}
        target = batch["target"]
        with torch.inference_mode():
            encoded = model.encode(batch["supports"], batch["masks"])
            if isinstance(model, HDMNet):
                output = model.match(batch["query"], encoded)
                final = model.calibration(output.final, encoded.shots)
                scores = {"final": final, "meta": output.meta}
            else:
                scores = {"final": model.scores(batch["query"], encoded)}
        size = (target.shape[1], target.shape[2])
        masks = {head: transform.restore(scores[head], size).argmax(dim=1) for head in heads}
        metric.update(masks, target, batch["label"])
        if rank == 0 and number < args.pictures:
            draw(episodes, number * world, masks["final"][0].cpu() == 1, args.out)
    return {name: value.item() for name, value in metric.compute().items()}


def draw(episodes: EpisodeList, number: int, mask: torch.Tensor, folder: Path) -> None:
    """Draw the supports with their masks in blue, and the query with the answer in orange."""
    source, (query, supports, label) = episodes.source, episodes[number]
    shown = [(i, torch.from_numpy(source.label(i) == label), "blue") for i in supports[:5]]
    tiles = []
    for index, tint, color in [*shown, (query, mask, "orange")]:
        pixels = (source.image(index) * 255).byte()
        tinted = draw_segmentation_masks(pixels, tint, alpha=0.5, colors=color)
        picture = Image.fromarray(tinted.permute(1, 2, 0).numpy())
        tiles.append(picture.resize((round(picture.width * 240 / picture.height), 240)))
    strip = Image.new("RGB", (sum(tile.width for tile in tiles), 240))
    for i, tile in enumerate(tiles):
        strip.paste(tile, (sum(t.width for t in tiles[:i]), 0))
    strip.save(folder / f"episode-{number:04}-{source.classes[label - 1].replace('/', '_')}.jpg")


def report(scores: dict[str, float]) -> str:
    """Make a table of the scores in per cent, with a row for each class."""
    heads = [key.removesuffix("/mIoU") for key in scores if key.endswith("/mIoU")]
    rows = [f"| class | episodes | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for name in [key.removeprefix("episodes/") for key in scores if key.startswith("episodes/")]:
        ious = (f"{100 * scores[f'{head}/IoU/{name}']:.1f}" for head in heads)
        rows.append(f"| {name} | {scores[f'episodes/{name}']} | {' | '.join(ious)} |")
    for what in ("mIoU", "FB-IoU"):
        values = (f"{100 * scores[f'{head}/{what}']:.1f}" for head in heads)
        rows.append(f"| **{what}** | | {' | '.join(values)} |")
    return "\n".join(rows)


def find_network(name: str) -> type[FewShotModel]:
    """Import the class of `--network`, also from the current folder.

    Raises:
        click.UsageError: If there is no such class.
    """
    sys.path.append(os.getcwd())
    try:
        network = pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise click.UsageError(f"--network {name}: {error}: expected MODULE:CLASS") from error
    if not (isinstance(network, type) and issubclass(network, FewShotModel)):
        raise click.UsageError(
            f"--network {name} is no FewShotModel: expected a class of that kind"
        )
    return network


def run(args: SimpleNamespace) -> None:
    """Score, and write results.json, a table, the episodes and pictures."""
    local = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else None
    args.device = str(choose_device(args.device or (local if torch.cuda.is_available() else None)))
    if distributed := "WORLD_SIZE" in os.environ:
        if args.device.startswith("cuda"):
            torch.cuda.set_device(args.device)
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    network = find_network(args.network)
    model = network.from_pretrained(args.model).to(args.device).fused()
    if distributed and dist.get_rank():
        dist.barrier()  # the first process reads the labels, and --cache spares the others the work
    episodes = choose_episodes(args)
    if distributed and not dist.get_rank():
        dist.barrier()
    scores = score(model, episodes, args)
    if not distributed or dist.get_rank() == 0:
        write(args, model.fingerprint(), episodes, scores)
    if distributed:
        dist.destroy_process_group()


def write(
    args: SimpleNamespace, model: str, episodes: EpisodeList, scores: dict[str, float]
) -> None:
    """Write the scores, and everything that says how they came about."""
    how: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
    results = {
        "model fingerprint": model,
        "episodes sha256": episodes.sha256,
        "episodes": len(episodes),
        "shots": episodes.shots,
        "arguments": how,
        # JSON has no NaN: the score of a class without an episode is null.
        "scores": {k: None if math.isnan(v) else v for k, v in scores.items()},
    }
    for name, text in (
        ("results.json", json.dumps(results, indent=1)),
        ("results.md", report(scores) + "\n"),
    ):
        write_whole(args.out / name, partial(Path.write_text, data=text))
    episodes.save(args.out / "episodes.json")
    click.echo(f"{report(scores)}\n{args.out / 'results.json'}")
