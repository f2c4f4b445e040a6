"""Measure hdmnet against one bare forward of its backbone, and write README.md and results.png.

    python benchmarks/run.py

T is the CPU seconds, and M the extra memory, of one forward of timm's ResNet-50 (features only,
stride 8, float32) on one picture of 473 × 473. Every figure is a multiple of these, from the same
process, medians of runs that take turns. It takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from cases import (
    SIZE,
    Episode,
    bare_backbone,
    make_episode,
    make_model,
    training_step,
)
from floor import count_flops, matmul_rate
from measure import extra_bytes, ratios
from report import write_report

from hdmnet import HDMNet
from hdmnet.supports import SupportSet

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent

SHOTS, SIZES, COVERAGES = (1, 5, 10, 20), (237, 473, 633), (0.01, 0.1, 0.5, 1.0)
MANY = 16


def query(model: HDMNet, episode: Episode) -> Callable[[], object]:
    """Segment one picture with a set that is encoded already."""
    supports = model.encode_supports(episode.supports, episode.masks)
    return lambda: model.predict(episode.query, supports)


def cold(model: HDMNet, episode: Episode) -> Callable[[], object]:
    """Segment one picture with supports that are not."""
    return lambda: model.predict(episode.query, episode.supports, episode.masks)


def in_bfloat16(call: Callable[[], object]) -> Callable[[], object]:
    """The same call under autocast."""

    def autocast() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return autocast


def main_table(model: HDMNet, rounds: int) -> dict[str, float]:
    """The cases of the first table, as multiples of T; with T itself."""
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
    return measured


def memory_table(model: HDMNet) -> dict[str, float]:
    """Extra peak memory, as multiples of M; with M itself in megabytes."""
    five = make_episode(5)
    bare = extra_bytes(bare_backbone())
    steps = {shots: extra_bytes(training_step(shots, 1)) for shots in (1, 5)}
    return {
        "M": bare / 1e6,
        "query, 5-shot set": extra_bytes(query(model, five)) / bare,
        "cold predict, 5 shots": extra_bytes(cold(model, five)) / bare,
        "training step, 5 shots against 1, batch 1": steps[5] / steps[1],
    }


def growth(model: HDMNet, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Query and cold predict over K, size and coverage; by size, T is of the same size."""
    episodes = {
        "shots": [make_episode(shots) for shots in SHOTS],
        "coverage": [make_episode(1, coverage=coverage) for coverage in COVERAGES],
    }
    tables: dict[str, dict[str, list[float]]] = {}
    for title, group in episodes.items():
        calls = {f"query {i}": query(model, episode) for i, episode in enumerate(group)}
        calls |= {f"cold {i}": cold(model, episode) for i, episode in enumerate(group)}
        measured = ratios(bare_backbone(), calls, rounds=rounds)
        tables[title] = {
            name: [measured[f"{name} {i}"] for i in range(len(group))] for name in ("query", "cold")
        }
    sizes = []
    for size in SIZES:
        of_size, episode = make_model(size).fused(), make_episode(1, size=size)
        pair = {"query": query(of_size, episode), "cold": cold(of_size, episode)}
        sizes.append(ratios(bare_backbone(size=size), pair, rounds=rounds))
    tables["size"] = {name: [measured[name] for measured in sizes] for name in ("query", "cold")}
    return tables


def agreement(model: HDMNet) -> float:
    """Share of the pixels on which the masks of float32 and of bfloat16 autocast agree."""
    call = query(model, make_episode(5))
    full, half = call(), in_bfloat16(call)()
    return float((full.mask == half.mask).float().mean())  # type: ignore[attr-defined]


def onnx(model: HDMNet, rounds: int) -> dict[str, float]:
    """Query path in onnxruntime, 5 shots, as a multiple of T; `predict`'s resizing left out."""
    try:
        import onnxruntime

        from hdmnet.onnx import export_onnx
    except ImportError:
        logger.warning("onnxruntime left out: pip install 'hdmnet[onnx]'")
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
    """The bundled model against its own backbone, and pictures a second in this process."""
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    size = model.image_size
    episode = make_episode(5, size=size)
    calls = {"query": query(model, episode), "cold": cold(model, episode)}
    yardstick = bare_backbone("tf_efficientnet_lite0", size=size)
    return {"size": size} | ratios(yardstick, calls, rounds=10 * rounds)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "bfloat16 instructions": "avx512_bf16" in cpuinfo or "amx_bf16" in cpuinfo,
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    model = make_model().fused()
    results = {
        "machine": machine(),
        "time": main_table(model, args.rounds),
        "memory": memory_table(model),
        "agreement": agreement(model),
        "growth": growth(model, max(args.rounds // 2, 1)),
        "axes": {"shots": SHOTS, "size": SIZES, "coverage": COVERAGES},
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
