"""Fine-tune in a plain PyTorch loop, in one process or several; `--resume` continues a run.

python examples/finetune_torch.py DATA RUN
python examples/finetune_torch.py --folders MY_DATA RUN
torchrun --nproc-per-node 2 examples/finetune_torch.py DATA RUN
"""

import json
import logging
import os
from argparse import Namespace

import torch
import torch.distributed as dist
from particles import arguments, choose_device, measure, open_pictures, parse
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from hdmnet import EpisodeLoss, HDMNet
from hdmnet.data import EpisodeDataset, EpisodeSampler, TrainTransform

logger = logging.getLogger(__name__)


def train(args: Namespace) -> None:
    """Train in this process; torchrun starts WORLD_SIZE such processes."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if args.batch % world:
        raise SystemExit(f"--batch must be a multiple of {world} (processes), got {args.batch}")
    device = choose_device()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    main = rank == 0
    if main:
        open_pictures(args)  # draws missing particles
    if world > 1:
        dist.barrier()
    pictures, held_out = open_pictures(args)
    torch.manual_seed(rank)

    model = HDMNet.from_pretrained(args.model).freeze_backbone().to(device)
    optimiser = torch.optim.AdamW(model.param_groups(args.lr), weight_decay=0.01)
    loss_of, start, curve = EpisodeLoss(), 0, []
    state_file = args.run / "state.pt"
    if args.resume:
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start, curve = state["step"], state["curve"]
        torch.manual_seed(rank + world * start)
        if main:
            torch.set_rng_state(state["rng"])
            torch.cuda.set_rng_state_all(state["cuda_rng"])
    elif main:
        curve.append((0, measure(model, held_out, episodes=args.episodes)))
    # Not PolynomialLR: it would go on with the --steps of the run that is resumed.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: max(1 - step / args.steps, 0) ** 0.9, last_epoch=start - 1
    )

    # All classes of `pictures` are base classes: `base_class` keeps the target out of the base map.
    base = model.config["base_classes"]
    if base not in (0, len(pictures.classes)):
        raise SystemExit(f"{args.model} has {base} base classes, not {len(pictures.classes)}")
    base_classes = range(1, base + 1) if base else None
    # Episode i is the same in every run, so each process selects its episodes by their index.
    length = args.steps * args.batch
    episodes = EpisodeSampler(pictures, length=length, min_area=1, order="balanced")
    transform = TrainTransform(args.size, mean=model.backbone.mean, std=model.backbone.std)
    mine = range(start * args.batch + rank, len(episodes), world)
    dataset = EpisodeDataset(episodes, transform, base_classes=base_classes)
    loader = DataLoader(
        Subset(dataset, mine),
        batch_size=args.batch // world,
        generator=torch.Generator(),  # else it would change the random numbers of the dropout
    )
    wrapped = DistributedDataParallel(model) if world > 1 else model
    wrapped.train()
    for step, batch in enumerate(tqdm(loader, disable=not main), start=start + 1):
        batch = {name: value.to(device) for name, value in batch.items()}
        output = wrapped(batch["query"], batch["supports"], batch["masks"], batch.get("base_class"))
        losses = loss_of(output, batch["target"])
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        schedule.step()
        if main and (step % args.every == 0 or step == args.steps):
            curve.append((step, measure(model, held_out, episodes=args.episodes)))
            logger.info("step %d: loss %.3f, mIoU %.3f", step, losses.total.item(), curve[-1][1])
            (args.run / "curve.json").write_text(json.dumps(curve))
            model.save_pretrained(args.run / "model")
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all(),  # an empty list without CUDA
                "step": step,
                "curve": curve,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    """Parse the command line and train."""
    parser = arguments(__doc__, steps=400, batch=4, lr=2e-4, folders=True)
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--resume", action="store_true", help="continue from RUN/state.pt")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(parse(parser))


if __name__ == "__main__":
    main()
