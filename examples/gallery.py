"""Segment the photographs of the gallery with the bundled weights.

    python examples/gallery.py

It writes one strip for each task: supports with their masks, then queries with the answers.
The licenses of the photographs are in examples/gallery/README.md.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from predict import strip

from hdmnet import Box, HDMNet, Segmentation, load_mask

logger = logging.getLogger(__name__)

# The name of a strip, its folder, the numbers of its supports, an annotation in place of their
# masks, and options of `predict`.
TASKS: tuple[tuple[str, str, tuple[int, ...], Box | None, dict[str, Any]], ...] = (
    ("reptiles", "reptiles", (1,), None, {}),
    ("bears", "bears", (1,), None, {}),
    ("flowers", "flowers", (1,), None, {}),
    ("tools", "tools", (1,), None, {}),
    ("cups", "cups", (1,), None, {}),
    ("lakes", "lakes", (1,), None, {}),
    ("lakes-two", "lakes", (1, 2), None, {}),
    ("rocks", "rocks", (1,), None, {}),
    ("roads", "roads", (1,), None, {}),
    ("pelicans", "pelicans", (1,), None, {}),
    ("nuclei", "nuclei", (1,), None, {}),
    ("nuclei-tiles", "nuclei", (2,), None, {"tile": 160}),
    ("galaxies", "galaxies", (1,), Box(165, 125, 283, 314), {}),
)
ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, BETWEEN = 900, 240, 24  # pixels: of a strip, and between supports and queries
BLUE = (0, 110, 255)


def segment_task(
    model: HDMNet,
    folder: Path,
    numbers: tuple[int, ...],
    annotation: Box | None,
    options: dict[str, Any],
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Segment the queries in a folder; return overlays of the supports and of the queries."""
    supports = [folder / f"support_{number}.jpg" for number in numbers]
    masks = [annotation or path.with_suffix(".png") for path in supports]
    encoded = model.encode_supports(supports, masks)
    shown = [outline(model, *pair) for pair in zip(supports, masks, strict=True)]
    overlays = []
    for query in sorted(folder.glob("query_*.jpg")):
        result = model.predict(query, encoded, **options)
        overlays.append(result.overlay(query))
        logger.info(
            "%s/%s: presence %.2f, area %.1f %%",
            folder.name,
            query.name,
            result.presence,
            100 * result.mask.float().mean(),
        )
    return shown, overlays


def outline(model: HDMNet, support: Path, annotation: Box | Path) -> Image.Image:
    """Draw a support with its mask in blue, and with its box if it has one."""
    if isinstance(annotation, Path):
        mask = load_mask(annotation)
    else:
        mask = model.pseudo_mask(support, annotation)
    drawn = Segmentation((mask == 1).float()).overlay(support, color=BLUE)
    if isinstance(annotation, Box):
        corners = (annotation.x0, annotation.y0, annotation.x1, annotation.y1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=BLUE, width=2)
    return drawn


def main() -> None:
    """Parse the command line, segment all tasks, and write their strips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--strips", nargs="+", default=[task[0] for task in TASKS])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    model = HDMNet.from_pretrained(args.model).fused()
    for name, folder, numbers, annotation, options in TASKS:
        if name in args.strips:
            logger.info("%s", name)
            path = ROOT / "examples" / "gallery" / folder
            images = segment_task(model, path, numbers, annotation, options)
            drawn = strip(*images, width=WIDTH, height=HEIGHT, between=BETWEEN)
            drawn.save(args.out / f"{name}.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main()
