"""Results as a page and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIMITS = {
    "query, 1-shot set": 1.5,
    "query, 5-shot set": 1.6,
    "cold predict, 1 shot": 2.8,
    "cold predict, 5 shots": 7.5,
    "query, 5-shot set, bf16 autocast": 0.8,
    "16 queries in a call, 5-shot set, each": 1.5,
    "training step, 1 shot, batch 2": 7.0,
    "training step, 5 shots, batch 1": 9.0,
}
MEMORY_LIMITS = {
    "query, 5-shot set": 1.3,
    "cold predict, 5 shots": 1.6,
    "training step, 5 shots against 1, batch 1": 1.7,
}


def write_report(results: dict[str, Any], folder: Path) -> str:
    """Write README.md and results.png, and return the text."""
    text = _text(results)
    temporary = folder / "README.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "README.md")
    _plot(results, folder / "results.png")
    return text


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _text(results: dict[str, Any]) -> str:
    time, memory, flops = results["time"], results["memory"], results["flops"]
    machine = ", ".join(f"{key}: {value}" for key, value in results["machine"].items())
    rate = results["matmul_rate"]
    lite0, onnx = results["lite0"], results["onnx"]
    timed = [(name, f"{time[name]:.2f} T", f"{limit} T") for name, limit in LIMITS.items()]
    unit = {name: "×" if "against" in name else "M" for name in MEMORY_LIMITS}
    remembered = [
        (f"memory: {name}", f"{memory[name]:.2f} {unit[name]}", f"{limit} {unit[name]}")
        for name, limit in MEMORY_LIMITS.items()
    ]
    grown = []
    for title, name in (("shots", "K"), ("size", "size, px"), ("coverage", "mask coverage")):
        table = results["growth"][title]
        for value, query, cold in zip(
            results["axes"][title], table["query"], table["cold"], strict=True
        ):
            shown = f"{100 * value:.0f} %" if title == "coverage" else value
            grown.append((f"{name} = {shown}", f"{query:.2f} T", f"{cold:.2f} T"))
    counted = [
        (name, f"{value / 1e9:.0f}", f"{value / rate / time['T']:.2f} T")
        for name, value in flops.items()
    ]
    exported = [
        (f"query path in {name}, 5-shot set", f"{value:.2f} T", "") for name, value in onnx.items()
    ]
    return f"""# Benchmarks

Written by `python benchmarks/run.py`. T is the CPU time, and M the extra memory, of one forward of
timm's ResNet-50 (features only, stride 8, float32) on one picture of 473 × 473; here T =
{time["T"]:.2f} CPU seconds and M = {memory["M"]:.0f} MB. Everything is a ratio of medians of runs
that take turns in one process: HDMNet on ResNet-50 at 473 × 473 with synthetic weights, masks that
cover 10 % of the picture, `model.fused()`; training steps are of the model itself, with
`freeze_backbone()`. Ratios move by a few per cent from run to run.

{machine}

{_table(("case", "measured", "limit"), timed + remembered + exported)}

"Query path" leaves out `predict`'s resizing. Masks under bf16 autocast agree with those of float32
on {100 * results["agreement"]:.1f} % of the pixels.

## How it grows

Of one query against an encoded set, and of a cold `predict`; 1 shot, 473 px and 10 % where not
said otherwise. By size, T is the backbone's at that size.

{_table(("", "query", "cold"), grown)}

![The tables above as a picture](results.png)

## The floor

Operations counted by `torch.utils.flop_counter`, and the time they take at the rate of a large
1 × 1 convolution on this machine ({rate / 1e9:.0f} G a CPU second).

{_table(("part", "G operations", "at that rate"), counted)}

## The bundled model

`hdmnet-lite0` at {lite0["size"]} px: a query against an encoded 5-shot set takes
{lite0["query"]:.2f}, and a cold 5-shot `predict` {lite0["cold"]:.2f}, of one bare forward of its
backbone at that size ({1000 * lite0["T"]:.0f} CPU ms); that is
{1 / (lite0["T"] * lite0["query"]):.1f} pictures a CPU second.
"""


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 4), width_ratios=(2.2, 1, 1, 1))
    time = results["time"]
    names = list(LIMITS)[::-1]
    axes[0].barh(names, [LIMITS[n] for n in names], color="#dddddd", label="limit")
    axes[0].barh(names, [time[n] for n in names], height=0.5, color="#d1495b", label="measured")
    axes[0].set_xlabel("T: one bare forward of the backbone")
    axes[0].legend(loc="upper right", frameon=False)
    titles = {"shots": "supports K", "size": "picture size, px", "coverage": "mask coverage"}
    for axis, (key, label) in zip(axes[1:], titles.items(), strict=True):
        values = results["axes"][key]
        table = results["growth"][key]
        axis.plot(values, table["cold"], "o-", color="#30638e", label="cold predict")
        axis.plot(values, table["query"], "o-", color="#d1495b", label="query")
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("T" if key != "size" else "T at that size")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
