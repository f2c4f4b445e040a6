"""Draw what each block of the network sees on a photograph: docs/how-it-works.jpg.

    python examples/look_inside.py docs/how-it-works.jpg

Features have many channels. Their three principal components are drawn as red, green and blue:
similar colours are similar features. Bright pixels of maps resemble the object more.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from hdmnet import HDMNet, load_image, load_mask

mpl.use("Agg")

DATA = Path(__file__).parent / "data" / "feline"
STEPS = ("the images", "FeaturePyramid", "priors", "HierarchicalEncoder", "CascadeMatching")


def in_colours(features: Tensor) -> Tensor:
    """Draw the three principal components of features (C, h, w) as colours (h, w, 3)."""
    flat = features.flatten(1).T
    flat = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    shown = flat @ axes[:3].T
    low, high = shown.quantile(0.02, dim=0), shown.quantile(0.98, dim=0)
    return ((shown - low) / (high - low)).clamp(0, 1).unflatten(0, features.shape[1:])


def as_pixels(image: Tensor) -> Tensor:
    """(3, H, W) → (H, W, 3), as Matplotlib draws it."""
    return image.permute(1, 2, 0)


def main() -> None:
    """Segment a photograph, keep what the blocks return, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("--query", type=Path, default=DATA / "query_1.jpg")
    parser.add_argument("--support", type=Path, default=DATA / "support_1.jpg")
    parser.add_argument("--mask", type=Path, default=DATA / "support_1.png")
    args = parser.parse_args()
    model = HDMNet.from_pretrained("hdmnet-lite0")
    encoded = model.encode_supports(args.support, args.mask)

    seen: dict[str, Any] = {}
    for name in ("backbone", "encoder"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output})
        )
    answer = model.predict(args.query, encoded)
    why = answer.explain()

    support = load_image(args.support) * load_mask(args.mask)
    priors = [f"of {name}" for name in why.prior_names[:2]] + ["contrast with the mean image"]
    stages = list(enumerate(seen["encoder"], start=1))
    panels = [
        ("support × mask", as_pixels(support)),
        ("query", as_pixels(load_image(args.query))),
        ("answer", answer.overlay(args.query)),
        *((f"f{i}", in_colours(f[0])) for i, f in enumerate(seen["backbone"], start=2)),
        *zip(priors, why.priors, strict=True),
        *((f"stage {i}", in_colours(tokens[0])) for i, tokens in stages),
        *((f"correlation of stage {3 - i}", values) for i, values in enumerate(why.correlations)),
    ]
    figure, axes = plt.subplots(5, 3, figsize=(9, 11), layout="constrained")
    for axis, (title, picture) in zip(axes.flat, panels, strict=True):
        shape = support if title == "support × mask" else answer.probability
        height, width = shape.shape[-2:]
        axis.imshow(picture, cmap="inferno", extent=(0, width, height, 0))
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    for first, step in zip(axes[:, 0], STEPS, strict=True):
        place = {"rotation": 90, "va": "center", "ha": "right", "transform": first.transAxes}
        first.text(-0.08, 0.5, step, **place)
    figure.savefig(args.picture, dpi=90)


if __name__ == "__main__":
    main()
