"""What a forked process must know of its parent."""

import os

import torch

_process = os.getpid()


def leave_parent() -> None:
    """Compute with one thread in a forked process, as torch's own data loaders do.

    OpenMP's other threads do not survive a fork, and waiting for them would never end.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()
