"""Segment the example photographs with the bundled weights.

    python examples/predict.py

It writes the mask and an overlay of each query, and `overview.png` with a row for each class.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from PIL import Image

from hdmnet import HDMNet, Segmentation
from hdmnet.images import load_mask

logger = logging.getLogger(__name__)

WIDTH, HEIGHT, GAP = 1200, 220, 6  # pixels: width of the overview, largest height of a row
DATA = Path(__file__).parent / "data"


def segment_class(
    model: HDMNet, folder: Path, out: Path
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Segment every query of a class; return overlays of the supports and of the queries."""
    supports = sorted(folder.glob("support_*.jpg"))
    masks = [path.with_suffix(".png") for path in supports]
    encoded = model.encode_supports(supports, masks)
    shown = [outline(*pair) for pair in zip(supports, masks, strict=True)]
    overlays = []
    for query in sorted(folder.glob("query_*.jpg")):
        result = model.predict(query, encoded)
        overlay = result.overlay(query)
        name = f"{folder.name}_{query.stem}"
        result.save(out / f"{name}_mask.png")
        overlay.save(out / f"{name}.png")
        logger.info(
            "%s: %.1f %% of %s is %s (%d-shot)",
            out / f"{name}.png",
            100 * result.mask.float().mean(),
            query.name,
            folder.name,
            encoded.shots,
        )
        overlays.append(overlay)
    return shown, overlays


def outline(support: Path, mask: Path) -> Image.Image:
    """Draw a support with its mask in blue."""
    with Image.open(support) as image:
        size = (image.height, image.width)
    given = Segmentation((load_mask(mask, size) == 1).float())
    return given.overlay(support, color=(0, 110, 255))


def strip(
    supports: list[Image.Image],
    queries: list[Image.Image],
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    between: int = 5 * GAP,
) -> Image.Image:
    """Draw images side by side, supports before queries, as high as the width allows.

    Args:
        supports: Overlays of the supports.
        queries: Overlays of the queries.
        width: Largest width, in pixels.
        height: Largest height, in pixels.
        between: Pixels between the last support and the first query.
    """
    images = [*supports, *queries]
    gaps = GAP * (len(images) - 2) + between
    aspect = sum(image.width / image.height for image in images)
    height = min(height, int((width - gaps) / aspect))
    drawn = Image.new("RGB", (width, height), "white")
    x = 0
    for number, image in enumerate(images):
        x += between - GAP if number == len(supports) else 0
        scaled = image.resize((round(height * image.width / image.height), height))
        drawn.paste(scaled, (x, 0))
        x += scaled.width + GAP
    return drawn.crop((0, 0, x - GAP, height))


def overview(rows: list[tuple[list[Image.Image], list[Image.Image]]]) -> Image.Image:
    """Draw one row per class."""
    return stack([strip(*row) for row in rows])


def stack(strips: list[Image.Image]) -> Image.Image:
    """Draw strips below each other."""
    canvas = Image.new("RGB", (WIDTH, sum(s.height + GAP for s in strips) - GAP), "white")
    y = 0
    for drawn in strips:
        canvas.paste(drawn, (0, y))
        y += drawn.height + GAP
    return canvas


def main() -> None:
    """Parse the command line, segment all classes, and write the overview."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with a folder per class")
    parser.add_argument("--out", type=Path, default=DATA.parent / "output")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    model = HDMNet.from_pretrained(args.model)
    classes = sorted(path for path in args.data.iterdir() if path.is_dir())
    rows = [segment_class(model, folder, args.out) for folder in classes]
    overview(rows).save(args.out / "overview.png")
    logger.info(
        "%s: supports with masks (blue), queries with predicted masks", args.out / "overview.png"
    )


if __name__ == "__main__":
    main()
