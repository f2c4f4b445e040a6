"""Predict in worker processes. The command line names their start method."""

import sys
from multiprocessing import get_context

import torch
from hostile import MODEL, photograph, pixels
from torch import Tensor


def work(_: int) -> Tensor:
    """Make one prediction."""
    size = (400, 500)  # large enough for several threads
    return MODEL.predict(photograph(size), photograph(), pixels(1, 1, 1)).probability


if __name__ == "__main__":
    torch.set_num_threads(2)
    alone = work(0)
    with get_context(sys.argv[1]).Pool(2) as pool:
        answers = pool.map(work, range(4))
    assert all((answer - alone).abs().max() < 1e-6 for answer in answers)
    print("works: the same answers as in the parent")
