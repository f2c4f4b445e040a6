"""Use two blocks of HDMNet in another network.

The network has a frozen encoder of segmentation_models_pytorch, a 1 × 1 convolution for each of
three levels, and `CascadeMatching`. `CorrelationDistillation` is a part of its loss.

    python examples/reuse_blocks.py DATA RUN
"""

import json
import logging

import torch
import torch.nn.functional as F
from einops import rearrange
from particles import arguments, choose_device, held_out, make, open_split, parse, score
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hdmnet import CascadeMatching, CorrelationDistillation, HDMNet, cosine_prior
from hdmnet.data import EpisodeDataset, EpisodeSampler, EvalTransform, TrainTransform

logger = logging.getLogger(__name__)

LEVELS = slice(2, 5)  # features at 1/4, 1/8 and 1/16 of the image


class MatchingNetwork(nn.Module):
    """Network that matches the features of an encoder from coarse to fine."""

    def __init__(self, encoder: str = "tu-tf_efficientnet_lite0", dim: int = 64) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder, weights=None).requires_grad_(False)
        channels = self.encoder.out_channels[LEVELS]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.cascade = CascadeMatching(dim, len(channels), prior_channels=2)

    def train(self, mode: bool = True) -> "MatchingNetwork":
        """Keep the frozen encoder in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self, query: Tensor, supports: Tensor, masks: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, 2, H, W) and correlation maps, coarsest first. See `HDMNet.forward`."""
        shots = supports.shape[1]
        own = self.encoder(query)[LEVELS]
        shown = [
            rearrange(level, "(b k) c h w -> b k c h w", k=shots)
            for level in self.encoder(rearrange(supports, "b k c h w -> (b k) c h w"))[LEVELS]
        ]
        mask = (masks == 1).float()
        pairs = zip(own[1:], shown[1:], strict=True)
        priors = [cosine_prior(level, other, mask)[:, None] for level, other in pairs]
        prior = torch.cat([F.interpolate(p, own[0].shape[-2:]) for p in priors], dim=1)
        levels = [lateral(level) for lateral, level in zip(self.laterals, own, strict=True)]
        others = [
            rearrange(lateral(level.flatten(0, 1)), "(b k) c h w -> b k c h w", k=shots)
            for lateral, level in zip(self.laterals, shown, strict=True)
        ]
        logits, correlations = self.cascade(levels, others, mask, prior)
        return F.interpolate(logits, query.shape[-2:], mode="bilinear"), correlations


def main() -> None:
    """Parse the command line, train, and measure along the way."""
    args = parse(arguments(__doc__, steps=300, batch=8, lr=1e-3))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    make(args.data, args.count)
    device = choose_device()
    model = MatchingNetwork().to(device)
    # The backbone of the bundled model has ImageNet weights, so nothing is downloaded.
    imagenet = HDMNet.from_pretrained("hdmnet-lite0").backbone.body
    model.encoder.model.load_state_dict(imagenet.state_dict())

    train = open_split(args.data, "train")
    sampler = EpisodeSampler(train, length=args.steps * args.batch, min_area=1, order="balanced")
    loader = DataLoader(EpisodeDataset(sampler, TrainTransform(args.size)), args.batch)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], args.lr)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, args.steps, power=0.9)
    distillation, curve = CorrelationDistillation(), []
    balance = torch.tensor([1.0, 5.0], device=device)
    resize = EvalTransform(args.size, keep_ratio=False)

    def segment(*episode: Tensor) -> Tensor:
        return model(*(tensor.to(device) for tensor in episode))[0].cpu()

    def measured(step: int) -> None:
        model.eval()
        miou = score(segment, held_out(open_split(args.data, "test"), args.episodes), resize)
        model.train()
        curve.append((step, miou))
        logger.info("step %d: mIoU %.3f", step, miou)

    measured(0)
    for step, batch in enumerate(tqdm(loader), start=1):
        batch = {name: value.to(device) for name, value in batch.items()}
        logits, correlations = model(batch["query"], batch["supports"], batch["masks"])
        target = batch["target"].long()
        # The weights balance the classes: objects cover a twentieth of the pixels.
        segmentation = F.cross_entropy(logits, target, balance, ignore_index=255)
        loss = segmentation + distillation(correlations, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % args.every == 0 or step == args.steps:
            measured(step)
    torch.save(model.state_dict(), args.run / "weights.pt")
    (args.run / "curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
