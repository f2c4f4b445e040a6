"""Compare int8 graphs with float32 graphs in onnxruntime: time, and masks on your photographs.

    python benchmarks/int8.py VOCdevkit/VOC2012 --split trainaug

The times are CPU seconds of a query in one thread, medians over calls that take turns. The masks
are those of `hdmnet-lite0` on a PASCAL VOC tree: for each class that enough photographs show, one
is the support and others are queries. The queries take no part in the calibration. It prints a
Markdown table. It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
from measure import cpu_seconds

from hdmnet import HDMNet, load_image
from hdmnet.data import PascalVOC
from hdmnet.data.source import VOID
from hdmnet.onnx import Session, export_onnx, quantize
from hdmnet.onnx.session import open_graph

DATA = Path(__file__).parents[1] / "examples" / "data" / "fish"
AREA = 0.05  # share of the photograph that the class covers, at least
QUERIES, CALIBRATION = 8, 32


def draw(source: PascalVOC, seed: int) -> tuple[dict[int, list[int]], list[int]]:
    """Draw photographs: a support and queries of each class, and others for the calibration."""
    order = random.Random(seed).sample(range(len(source)), len(source))
    calibration, rest = order[:CALIBRATION], order[CALIBRATION:]
    shown: dict[int, list[int]] = defaultdict(list)
    for index in rest:
        label = source.label(index)
        for c in np.unique(label[label > 0]).tolist():
            if (label == c).mean() > AREA and len(shown[c]) <= QUERIES:
                shown[c].append(index)
    return {c: found for c, found in shown.items() if len(found) >= 4}, calibration


def compare_masks(source: PascalVOC, folder: Path, seed: int) -> dict[str, float]:
    """Measure the share of equal pixels, and the mean IoU, with both graphs of each kind."""
    shown, calibration = draw(source, seed)
    if not shown:
        raise SystemExit(f"no class covers {AREA:.0%} of four photographs")
    export_onnx(HDMNet.from_pretrained("hdmnet-lite0"), folder / "pair")
    masked = [(found[0], c) for c, found in shown.items()]
    supports = [source.image(i) for i, _ in masked]
    masks = [(source.label(i) == c).astype(np.uint8) for i, c in masked]
    pictures = [source.image(i) for i in calibration]
    quantize(folder / "pair", folder / "pair-int8", pictures, supports, masks)
    sessions = [Session(folder / name, threads=1) for name in ("pair", "pair-int8")]
    same: list[float] = []
    ious: list[list[float]] = [[], []]
    for (c, (_, *queries)), support, mask in zip(shown.items(), supports, masks, strict=True):
        sets = [session.encode_supports(support, mask) for session in sessions]
        counts = np.zeros((2, 2))
        for index in queries:
            image, label = source.image(index), source.label(index)
            found = [
                session.predict(image, encoded).mask.numpy()
                for session, encoded in zip(sessions, sets, strict=True)
            ]
            same.append(float((found[0] == found[1]).mean()))
            truth, valid = label == c, label != VOID
            counts += [((m & truth)[valid].sum(), (m | truth)[valid].sum()) for m in found]
        for values, (both, either) in zip(ious, counts, strict=True):
            values.append(both / either)
    return {
        "classes": len(shown),
        "queries": len(same),
        "share of equal pixels": mean(same),
        "least share of equal pixels": min(same),
        "mean IoU, float32": mean(ious[0]),
        "mean IoU, int8": mean(ious[1]),
    }


def compare_times(model: HDMNet, picture: Path, mask: Path, folder: Path, rounds: int) -> float:
    """Measure the CPU time of a query in int8, as a multiple of that in float32."""
    path = export_onnx(model, folder / "class", model.encode_supports(picture, mask))
    (int8,) = quantize(folder / "class", folder / "class-int8", [picture])
    feed = {"image": load_image(picture).mul(255).byte().permute(1, 2, 0).contiguous().numpy()}
    graphs = [open_graph(x, threads=1) for x in (path, int8)]
    calls = {name: partial(graph.run, None, feed) for name, graph in zip("fi", graphs, strict=True)}
    seconds = cpu_seconds(calls, rounds=rounds)
    print(f"float32 {seconds['f']:.4f} s, int8 {seconds['i']:.4f} s")
    return seconds["i"] / seconds["f"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare int8 and float32 in onnxruntime.")
    parser.add_argument("root", nargs="?", help="a PASCAL VOC tree; without it, only times")
    parser.add_argument("--split", default="trainaug", help="its list of photographs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of photographs")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each graph")
    options = parser.parse_args()
    picture, mask = (DATA / f"support_1.{suffix}" for suffix in ("jpg", "png"))
    models = {
        "hdmnet-lite0, 353 px": HDMNet.from_pretrained("hdmnet-lite0"),
        "ResNet-50, base learner, 473 px, random weights": HDMNet(base_classes=15).eval(),
    }
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for what, model in models.items():
            folder = Path(name) / str(len(rows))
            rows[f"time of {what}"] = compare_times(model, picture, mask, folder, options.rounds)
        if options.root is not None:
            source = PascalVOC(options.root, options.split)
            rows |= compare_masks(source, Path(name), options.seed)
    print("\n".join(["| int8 against float32 | |", "|---|---|"]))
    print("\n".join(f"| {what} | {value:.4g} |" for what, value in rows.items()))


if __name__ == "__main__":
    main()
