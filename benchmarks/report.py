"""Write the results as README.md and results.png."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cases import KINDS

LIMITS = {
    "query, 1-shot set": 1.5,
    "query, 5-shot set": 1.6,
    "cold predict, 1 shot": 2.8,
    "cold predict, 5 shots": 7.5,
    "query, 5-shot set, bf16 autocast": 0.85,
    "16 queries in a call, 5-shot set, each": 1.5,
    "10 classes in a call, 1-shot sets": 3.3,  # 2.2 times one class
    "10 classes in a call, 5-shot sets": 3.5,
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
    for axis, name in (("shots", "K"), ("size", "size, px"), ("coverage", "mask coverage")):
        times, sizes = results["growth"][axis], results["memory growth"][axis]
        for i, value in enumerate(results["axes"][axis]):
            shown = f"{100 * value:.0f} %" if axis == "coverage" else value
            in_time = [f"{times[kind][i]:.2f} T" for kind in KINDS]
            in_memory = [f"{sizes[kind][i]:.2f} M" for kind in KINDS]
            grown.append((f"{name} = {shown}", *in_time, *in_memory))
    counted = [
        (name, f"{value / 1e9:.0f}", f"{value / rate / time['T']:.2f} T")
        for name, value in flops.items()
    ]
    agreed = [
        ("masks, bf16 autocast against float32", f"{100 * results['agreement']:.2f} %", "99 %")
    ]
    exported = [
        (f"query path in {name}, 5-shot set", f"{value:.2f} T", "") for name, value in onnx.items()
    ]
    return f"""# Benchmarks

`python benchmarks/run.py` writes this page.

* **T** and **M** are the CPU time and the extra memory of one forward pass of timm's ResNet-50
  (features only, stride 8, float32) on one picture of 473 × 473. On this machine T =
  {time["T"]:.2f} CPU seconds and M = {memory["M"]:.0f} MB. Times and memory are multiples of these.
* **HDMNet** uses ResNet-50 at 473 × 473 with synthetic weights, and masks that cover 10 % of the
  picture. Queries use `model.fused()`; training steps use `model.freeze_backbone()`, not fused.
* **Times** are medians. The calls take turns in one process. They vary by a tenth.
* **Memory** is the rise of the peak during a second call in a new process. It varies by a tenth.

{machine}

{_table(("case", "measured", "limit"), timed + agreed + remembered + exported)}

Every limit is an upper limit, except the 99 % of the pixels on which masks agree: that is a lower
limit. The "query path" is `predict` without its resizing.

## Growth with shots, size and mask coverage

"query" segments one picture with an encoded set, "cold" is `predict` with supports that are not
encoded yet, and "step" is a training step of batch 1. One setting varies per row; the others stay
at 1 shot, 473 px and 10 %. In the rows of the size, T is measured at that size. M is always
measured at 473 px.

{_table(("", *(f"{kind}, {what}" for what in ("time", "memory") for kind in KINDS)), grown)}

![Charts of the times and of the growth](results.png)

## Lower bound of the time

`torch.utils.flop_counter` counts the operations. The last column is the time that they take at the
rate of a large 1 × 1 convolution on this machine ({rate / 1e9:.0f} G per CPU second).

{_table(("part", "G operations", "at that rate"), counted)}

## `hdmnet-lite0`

`hdmnet-lite0` at {lite0["size"]} px: one forward pass of its backbone takes
{1000 * lite0["T"]:.0f} CPU ms. A query with an encoded 5-shot set takes {lite0["query"]:.2f} times
as long, which is {1 / (lite0["T"] * lite0["query"]):.1f} pictures per CPU second. A cold 5-shot
`predict` takes {lite0["cold"]:.2f} times as long.
"""


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(15, 6.5), layout="constrained")
    bars, *lines = figure.subplot_mosaic("0123;0456", width_ratios=(2, 1, 1, 1)).values()
    time = results["time"]
    names = list(LIMITS)[::-1]
    bars.barh(names, [LIMITS[n] for n in names], color="#dddddd", label="limit")
    bars.barh(names, [time[n] for n in names], height=0.5, color="#d1495b", label="measured")
    bars.set_xlabel("T: one bare forward of the backbone")
    bars.legend(loc="upper right", frameon=False)
    colors = {"query": "#d1495b", "cold": "#30638e", "step": "#8d96a3"}
    titles = {"shots": "supports K", "size": "picture size, px", "coverage": "mask coverage"}
    panels = [(table, axis) for table in ("growth", "memory growth") for axis in titles]
    for panel, (table, axis) in zip(lines, panels, strict=True):
        for kind in KINDS:
            grown = results[table][axis][kind]
            panel.plot(results["axes"][axis], grown, "o-", color=colors[kind], label=kind)
        panel.set_xlabel(titles[axis])
        panel.set_ylim(bottom=0)
        of_size = "T at that size" if axis == "size" else "T"
        panel.set_ylabel(of_size if table == "growth" else "M")
    lines[0].legend(frameon=False)
    for panel in (bars, *lines):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
