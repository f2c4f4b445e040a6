"""Measure hdmnet in multiples of one forward pass of its backbone, and write the results.

    python benchmarks/run.py

T and M are the CPU seconds and the extra memory of one forward pass of timm's ResNet-50 (features
only, stride 8, float32) on one picture of 473 × 473. All figures are multiples of T or M. Times are
medians over calls that take turns in one process; memory is measured in a new process per case.

This writes results.json, README.md and results.png. It takes about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from cases import (
    KINDS,
    SIZE,
    bare_backbone,
    cold,
    fused_model,
    make_call,
    make_episode,
    query,
    training_step,
)
from floor import count_flops, matmul_rate
from measure import extra_bytes, ratios
from report import write_report
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.supports import SupportSet

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent

AXES: dict[str, tuple[float, ...]] = {
    "shots": (1, 5, 10, 20),
    "size": (237, 473, 633),
    "coverage": (0.01, 0.1, 0.5, 1.0),
}
MANY, CLASSES = 16, 10


def in_bfloat16(call: Callable[[], object]) -> Callable[[], object]:
    """Run the call under bfloat16 autocast."""

    def autocast() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return autocast


def main_table(model: HDMNet, rounds: int) -> dict[str, float]:
    """Measure the times of the first table: T in CPU seconds, and the cases as multiples of T."""
    one, five = make_episode(1), make_episode(5)
    five_set = model.encode_supports(five.supports, five.masks)
    many = f"{MANY} queries in a call, 5-shot set, each"
    measured = ratios(
        bare_backbone(),
        {
            "query, 1-shot set": query(model, one),
            "query, 5-shot set": query(model, five),
            "cold predict, 1 shot": cold(model, one),
            "cold predict, 5 shots": cold(model, five),
            "query, 5-shot set, bf16 autocast": in_bfloat16(query(model, five)),
            many: lambda: model.predict([five.query] * MANY, five_set),
            "training step, 1 shot, batch 2": training_step(1, 2),
            "training step, 5 shots, batch 1": training_step(5, 1),
        },
        rounds=rounds,
    )
    measured[many] /= MANY
    # Apart from the others: they fill gigabytes, and every call is slower in a heap that has grown.
    of_one = {str(i): model.encode_supports(one.supports, one.masks) for i in range(CLASSES)}
    of_five = {str(i): model.encode_supports(five.supports, five.masks) for i in range(CLASSES)}
    of_classes = ratios(
        bare_backbone(),
        {
            f"{CLASSES} classes in a call, 1-shot sets": lambda: model.predict(one.query, of_one),
            f"{CLASSES} classes in a call, 5-shot sets": lambda: model.predict(five.query, of_five),
        },
        rounds=rounds,
    )
    return of_classes | measured


def memory_table(growth: dict[str, dict[str, list[float]]], base: float) -> dict[str, float]:
    """Take the memory cases of the first table from `growth`, and add M in megabytes."""
    one, five = AXES["shots"].index(1), AXES["shots"].index(5)
    by_shots = growth["shots"]
    return {
        "M": base / 1e6,
        "query, 5-shot set": by_shots["query"][five],
        "cold predict, 5 shots": by_shots["cold"][five],
        "training step, 5 shots against 1, batch 1": by_shots["step"][five] / by_shots["step"][one],
    }


def case(kind: str, axis: str, value: float) -> Callable[[], Callable[[], object]]:
    """Bind `make_call` to a kind and a value on an axis, in a form that can be pickled."""
    return partial(make_call, kind, **{axis: value})  # type: ignore[arg-type]  # K and size are int


def time_growth(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure axis → kind → multiples of T. On the size axis, T is measured at each size."""
    grown: dict[str, dict[str, list[float]]] = {}
    for axis, values in AXES.items():
        of_size = {value: int(value) if axis == "size" else SIZE for value in values}
        measured: dict[str, float] = {}
        for size in dict.fromkeys(of_size.values()):
            calls = {
                f"{kind} {value}": case(kind, axis, value)()
                for kind in KINDS
                for value in values
                if of_size[value] == size
            }
            measured |= ratios(make_call("bare", size=size), calls, rounds=rounds)
        grown[axis] = {kind: [measured[f"{kind} {value}"] for value in values] for kind in KINDS}
    return grown


def memory_growth(threads: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Measure axis → kind → multiples of M (always at 473 px), and M in bytes."""
    base = median(extra_bytes(make_call, "bare", threads=threads) for _ in range(3))
    cases = [(axis, kind, value) for axis in AXES for kind in KINDS for value in AXES[axis]]
    grown: dict[str, dict[str, list[float]]] = {axis: {kind: [] for kind in KINDS} for axis in AXES}
    for axis, kind, value in tqdm(cases, desc="memory", leave=False):
        grown[axis][kind].append(extra_bytes(case(kind, axis, value), threads=threads) / base)
    return grown, base


def agreement(model: HDMNet) -> float:
    """Measure the share of pixels on which the masks of float32 and bfloat16 autocast agree."""
    episode = make_episode(5)
    supports = model.encode_supports(episode.supports, episode.masks)
    pictures = [episode.query, *episode.supports]

    def masks() -> torch.Tensor:
        return torch.stack([result.mask for result in model.predict(pictures, supports)])

    return float((masks() == in_bfloat16(masks)()).float().mean())  # type: ignore[attr-defined]


def onnx(model: HDMNet, rounds: int) -> dict[str, float]:
    """Measure a 5-shot query, without resizing, in onnxruntime and PyTorch, as multiples of T."""
    try:
        import onnxruntime

        from hdmnet.onnx import export_onnx
    except ImportError:
        logger.warning("query path not measured: pip install '.[onnx]'")
        return {}
    episode = make_episode(5)
    supports: SupportSet = model.encode_supports(episode.supports, episode.masks)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        _, path = export_onnx(model, folder)
        session = onnxruntime.InferenceSession(path, options)
    tensors = [torch.randn(1, 3, SIZE, SIZE), *supports.named_tensors().values()]
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), tensors, strict=True)}
    image = tensors[0]

    @torch.inference_mode()
    def in_torch() -> object:
        return model.scores(image, supports)

    calls = {"onnxruntime": lambda: session.run(None, feed), "PyTorch": in_torch}
    measured = ratios(bare_backbone(), calls, rounds=rounds)
    return {name: measured[name] for name in calls}


def lite0(rounds: int) -> dict[str, float]:
    """Measure the bundled model in multiples of its backbone, whose CPU seconds are "T"."""
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    size = model.image_size
    episode = make_episode(5, size=size)
    calls = {"query": query(model, episode), "cold": cold(model, episode)}
    yardstick = bare_backbone("tf_efficientnet_lite0", size=size)
    return {"size": size} | ratios(yardstick, calls, rounds=10 * rounds)


def machine() -> dict[str, object]:
    """Describe the machine of the measurement."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "bfloat16 instructions": "avx512_bf16" in cpuinfo or "amx_bf16" in cpuinfo,
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs per case of the main table")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    model = fused_model()
    by_memory, base = memory_growth(args.threads)
    results = {
        "machine": machine(),
        "time": main_table(model, args.rounds),
        "memory": memory_table(by_memory, base),
        "agreement": agreement(model),
        "axes": AXES,
        "growth": time_growth(max(args.rounds // 2, 1)),
        "memory growth": by_memory,
        "onnx": onnx(model, args.rounds),
        "lite0": lite0(args.rounds),
        "flops": count_flops(model),
        "matmul_rate": matmul_rate(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    logger.info("%s", write_report(results, args.out))


if __name__ == "__main__":
    main()
