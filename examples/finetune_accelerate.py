"""Fine-tune with Accelerate: a plain loop on the devices that `accelerate config` chose.

python examples/finetune_accelerate.py DATA RUN
python examples/finetune_accelerate.py --folders MY_DATA RUN
accelerate launch examples/finetune_accelerate.py DATA RUN
"""

import json
import logging
from argparse import Namespace

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from particles import arguments, measure, open_pictures, parse
from torch.utils.data import DataLoader
from tqdm import tqdm

from hdmnet import EpisodeLoss, HDMNet
from hdmnet.data import EpisodeDataset, EpisodeSampler, TrainTransform

logger = logging.getLogger(__name__)


def train(args: Namespace) -> None:
    """Train, and measure the held-out classes every `--every` steps."""
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no")
    world = accelerator.num_processes
    if args.batch % world:
        raise SystemExit(f"--batch must be a multiple of {world} (processes), got {args.batch}")
    set_seed(0)
    with accelerator.main_process_first():
        pictures, held_out = open_pictures(args)
    network = HDMNet.from_pretrained(args.model).freeze_backbone()
    optimiser = torch.optim.AdamW(network.param_groups(args.lr), weight_decay=0.01)
    length = args.steps * args.batch
    episodes = EpisodeSampler(pictures, length=length, min_area=1, order="balanced")
    transform = TrainTransform(args.size, mean=network.backbone.mean, std=network.backbone.std)
    loader = DataLoader(EpisodeDataset(episodes, transform), args.batch // world)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, args.steps, power=0.9)
    model, optimiser, loader = accelerator.prepare(network, optimiser, loader)
    loss_of = EpisodeLoss()

    curve = []
    bar = tqdm(loader, disable=not accelerator.is_main_process)
    model.train()
    for step, batch in enumerate(bar):
        if step % args.every == 0 and accelerator.is_main_process:
            curve.append((step, measure(network, held_out, episodes=args.episodes)))
            logger.info("step %d: mIoU %.3f", *curve[-1])
        output = model(batch["query"], batch["supports"], batch["masks"])
        losses = loss_of(output, batch["target"])
        optimiser.zero_grad()
        accelerator.backward(losses.total)
        optimiser.step()
        schedule.step()
    if accelerator.is_main_process:
        curve.append((args.steps, measure(network, held_out, episodes=args.episodes)))
        logger.info("step %d: mIoU %.3f", *curve[-1])
        network.save_pretrained(args.run / "model")
        (args.run / "curve.json").write_text(json.dumps(curve))
    accelerator.end_training()


def main() -> None:
    """Parse the command line and train."""
    parser = arguments(__doc__, steps=400, batch=4, lr=2e-4, folders=True)
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    args = parse(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args)


if __name__ == "__main__":
    main()
