"""Compare gradients of DistributedDataParallel with those of one process. Torchrun starts it."""

import torch
import torch.distributed as dist
from conftest import assert_same, episode, make
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hdmnet import EpisodeLoss


def compare(**options: int) -> None:
    model = make(dropout=0.0, feature_dropout=0.0, **options).freeze_backbone().train()
    query, supports, masks = episode(batch=4, shots=options.get("shots", 1))
    # Without ignored pixels, both halves of the batch have the same weight in the mean loss.
    target = (masks[:, 0] == 1).long()
    base_class = torch.tensor([0, 2, 1, 0]) if model.ensemble else None

    def gradients(network: nn.Module, part: slice) -> list[Tensor]:
        model.zero_grad()
        own = None if base_class is None else base_class[part]
        output = network(query[part], supports[part], masks[part], own)
        EpisodeLoss()(output, target[part]).total.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    wrapped, rank = DistributedDataParallel(model), dist.get_rank()
    mine = slice(2 * rank, 2 * rank + 2)
    gradients(wrapped, mine)  # a parameter without gradient would make the second call fail
    split = gradients(wrapped, mine)
    whole = gradients(model, slice(None))
    assert len(whole) == sum(p.requires_grad for p in model.parameters())
    for ours, theirs in zip(split, whole, strict=True):
        assert_same(ours, theirs, 1e-4)
    if rank == 0:
        print("the same gradients", options)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    compare(base_classes=0)
    compare()
    compare(shots=5)
    dist.destroy_process_group()
