"""Score a model on episodes of PASCAL-5i, COCO-20i, FSS-1000 or your own data, as the papers do.

    python examples/evaluate.py pascal VOCdevkit/VOC2012 --model FOLDER --fold 0 --shots 1 --out OUT
    python examples/evaluate.py coco COCO --model FOLDER --fold 0 --shots 5 --out OUT
    python examples/evaluate.py json MY_IMAGES --annotations MINE.json --out OUT
    python examples/evaluate.py folders MY_DATA --out OUT

`torchrun --nproc-per-node N examples/evaluate.py …` splits the episodes over N processes, with
identical results. COCO is a folder with `val2014` and `annotations/instances_val2014.json`.
`--network MODULE:CLASS` scores a `FewShotModel` of your own, such as `own_network:PrototypeNet`.
"""

import argparse
import json
import logging
import os
import pkgutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.utils import draw_segmentation_masks
from tqdm import tqdm

from hdmnet import FewShotModel, HDMNet
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

logger = logging.getLogger(__name__)


def open_source(args: argparse.Namespace) -> tuple[LabelledImages, tuple[int, ...] | None]:
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


def choose_episodes(args: argparse.Namespace) -> EpisodeList:
    """Load the episodes of `--load`, or draw them from `--pairs` or by the rules."""
    source, classes = open_source(args)
    if args.pairs:
        seed, shots, length = args.seed, args.shots, args.episodes
        pairs = PairList(source, args.pairs, shots=shots, length=length, seed=seed)
        if classes and not set(pairs.classes) <= set(classes):
            raise SystemExit(f"{args.pairs} lists classes that are not in fold {args.fold}")
        return EpisodeList(source, pairs, classes)
    source.areas(args.cache)
    if args.load:
        return EpisodeList.load(args.load, source)
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


def score(model: FewShotModel, episodes: EpisodeList, args: argparse.Namespace) -> dict[str, float]:
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
                scores = {"final": model.calibration(output.final), "meta": output.meta}
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


def main() -> None:
    """Parse the command line, score, and write results.json, a table, the episodes and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=("pascal", "coco", "fss", "json", "folders"))
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--network", default="hdmnet:HDMNet", help="MODULE:CLASS of the model")
    parser.add_argument("--fold", type=int, default=0, help="0 to 3, for pascal and coco")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotations", type=Path, help="COCO file of instances, for json")
    parser.add_argument("--list", help="list of images (pascal) or file of class names (fss)")
    parser.add_argument(
        "--coco-split", choices=("interleaved", "contiguous"), default="interleaved"
    )
    parser.add_argument("--crowd", choices=("ignore", "class", "background"), default="ignore")
    parser.add_argument("--order", choices=("list", "balanced"), help="order of the queries")
    parser.add_argument("--query-class", choices=("shown", "listed"), default="shown")
    parser.add_argument("--min-area", type=int, help="pixels that a class needs in a listed image")
    parser.add_argument(
        "--resize", choices=("pad", "stretch"), help="resize images with or without padding"
    )
    parser.add_argument("--pairs", type=Path, help="draw from this list of NAME__LABEL (HSNet)")
    parser.add_argument("--load", type=Path, help="file of episodes to score instead of new ones")
    parser.add_argument("--cache", type=Path, help="file that keeps the areas of all labels")
    parser.add_argument("--pictures", type=int, default=5, help="answers to draw")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder to write to")
    args = parser.parse_args()
    if args.data == "json" and args.annotations is None:
        parser.error("json needs --annotations")
    # The papers have their own rules. Other data is scored with all classes alike, as by `predict`.
    published = args.data in ("pascal", "coco")
    args.order = args.order or ("list" if published else "balanced")
    args.min_area = args.min_area or (2048 if published else 1)
    args.resize = args.resize or ("pad" if published else "stretch")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.device = args.device or (
        f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    )
    if distributed := "WORLD_SIZE" in os.environ:
        if args.device.startswith("cuda"):
            torch.cuda.set_device(args.device)
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    network: type[FewShotModel] = pkgutil.resolve_name(args.network)
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
    args: argparse.Namespace, model: str, episodes: EpisodeList, scores: dict[str, float]
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
        "scores": scores,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    (args.out / "results.md").write_text(report(scores) + "\n")
    episodes.save(args.out / "episodes.json")
    logger.info("%s\n%s", report(scores), args.out / "results.json")


if __name__ == "__main__":
    main()
