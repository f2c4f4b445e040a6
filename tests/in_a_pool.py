"""Predict in worker processes. The command line names their start method."""

import os
import signal
import sys
from multiprocessing import get_context

import torch
from conftest import make
from hostile import MODEL, photograph, pixels
from torch import Tensor

from hdmnet import HDMNet


def predict(model: HDMNet) -> Tensor:
    """Make one prediction."""
    size = (400, 500)  # large enough for several threads
    return model.predict(photograph(size), photograph(), pixels(1, 1, 1)).probability


def work(number: int) -> Tensor:
    """Predict with the parent's model, or with one that the worker makes."""
    return predict(MODEL if number % 2 else make(**MODEL.config))


if __name__ == "__main__":
    torch.set_num_threads(2)
    alone = predict(MODEL)
    with get_context(sys.argv[1]).Pool(2) as pool:
        answers = pool.map(work, range(4))
        answers += pool.map(predict, [MODEL, MODEL])  # pickled
    assert all((answer - alone).abs().max() < 1e-6 for answer in answers)
    if sys.argv[1] == "fork" and not (child := os.fork()):
        signal.alarm(60)
        models = MODEL, make(**MODEL.config), MODEL.fused()
        same = [(predict(model) - alone).abs().max() < 1e-6 for model in models]
        os._exit(0 if all(same) else 1)
    if sys.argv[1] == "fork":
        assert os.waitpid(child, 0)[1] == 0
    print("works: the same answers as in the parent")
