"""Measure the CPU seconds of several calls, and the extra memory of one call."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

Call = Callable[[], object]


def cpu_seconds(calls: Mapping[str, Call], *, rounds: int) -> dict[str, float]:
    """Measure the median CPU seconds of each call, summed over the threads of this process.

    The calls take turns, so that a change in the machine's speed affects all of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    turns = [(name, call) for _ in range(rounds) for name, call in calls.items()]
    for name, call in (progress := tqdm(turns, desc="time", leave=False)):
        progress.set_postfix_str(name)
        start = time.process_time()
        call()
        taken[name].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}


def ratios(yardstick: Call, calls: Mapping[str, Call], *, rounds: int) -> dict[str, float]:
    """Measure each call in multiples of the yardstick; "T" holds the yardstick's CPU seconds."""
    seconds = cpu_seconds({"T": yardstick, **calls}, rounds=rounds)
    base = seconds.pop("T")
    return {"T": base} | {name: value / base for name, value in seconds.items()}


def extra_bytes(make_call: Callable[..., Call], *args: object, threads: int) -> int:
    """Measure how far resident memory rises during a second `make_call(*args)()` (Linux only).

    It starts a new process, because an allocator keeps memory that earlier calls have freed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_rise, make_call, args, threads).result()


def _rise(make_call: Callable[..., Call], args: tuple[object, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    call = make_call(*args)
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
