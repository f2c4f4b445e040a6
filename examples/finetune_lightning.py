"""Fine-tune with Lightning: a module with its optimiser and its metric.

python examples/finetune_lightning.py DATA RUN
python examples/finetune_lightning.py --folders MY_DATA RUN
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from particles import arguments, open_pictures, parse
from torch import Tensor
from torch.utils.data import DataLoader

from hdmnet import EpisodeLoss, HDMNet
from hdmnet.data import EpisodeDataset, EpisodeSampler, EvalTransform, TrainTransform
from hdmnet.metrics import FewShotIoU


class FewShotModule(lightning.LightningModule):
    """HDMNet with the loss and the optimiser of the paper.

    Args:
        model: Name, folder or Hub repository.
        lr: Learning rate of the transformer. The other parts use ten times this rate.
        classes: Names of the held-out classes.
    """

    def __init__(self, model: str, lr: float, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.save_hyperparameters()
        # from_pretrained returns a model in eval mode, and Lightning would keep it so.
        self.model = HDMNet.from_pretrained(model).freeze_backbone().train()
        self.loss_of = EpisodeLoss()
        self.held_out = FewShotIoU(classes)
        mean, std = self.model.backbone.mean, self.model.backbone.std
        self.resizing = EvalTransform(self.model.image_size, mean=mean, std=std, keep_ratio=False)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the loss of a batch of episodes."""
        output = self.model(batch["query"], batch["supports"], batch["masks"])
        losses = self.loss_of(output, batch["target"])
        self.log("train/loss", losses.total, prog_bar=True)
        return losses.total

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Add one held-out episode to the metric."""
        encoded = self.model.encode(batch["supports"], batch["masks"])
        scores = self.model.scores(batch["query"], encoded)  # as in `predict`: calibrated
        target = batch["target"]
        masks = self.resizing.restore(scores, target.shape[-2:]).argmax(dim=1)
        self.held_out.update(masks, target, batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log mIoU, except in Lightning's sanity check, which sees only a few classes."""
        if not self.trainer.sanity_checking:
            self.log("held_out/mIoU", self.held_out.compute()["final/mIoU"], prog_bar=True)
        self.held_out.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make AdamW with polynomial decay, as in the paper."""
        groups = self.model.param_groups(self.hparams["lr"])
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, steps, power=0.9)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Parse the command line and train."""
    parser = arguments(__doc__, steps=400, batch=4, lr=2e-4, folders=True)
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    args = parse(parser)

    lightning.seed_everything(0)
    train, test = open_pictures(args)
    module = FewShotModule(args.model, args.lr, test.classes)
    mean, std = module.model.backbone.mean, module.model.backbone.std
    common: dict[str, Any] = {"min_area": 1, "order": "balanced"}
    episodes = EpisodeDataset(
        EpisodeSampler(train, length=args.steps * args.batch, **common),
        TrainTransform(args.size, mean=mean, std=std),
    )
    held_out = EpisodeDataset(EpisodeSampler(test, length=args.episodes, **common), module.resizing)
    trainer = lightning.Trainer(
        default_root_dir=args.run,
        max_epochs=1,
        devices=1,  # with several, --batch and --every would count for each of them
        val_check_interval=min(args.every, args.steps),
        logger=CSVLogger(args.run, name="log"),
        log_every_n_steps=10,
    )
    held_out_loader = DataLoader(held_out)
    trainer.validate(module, held_out_loader)  # the score before training
    trainer.fit(module, DataLoader(episodes, args.batch), held_out_loader)
    module.model.save_pretrained(args.run / "model")


if __name__ == "__main__":
    main()
