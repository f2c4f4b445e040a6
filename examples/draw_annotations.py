"""Draw annotations, the masks that are made of them, and answers: docs/annotations.jpg.

    python examples/draw_annotations.py docs/annotations.jpg

Annotations are yellow, the masks blue and the answers orange.
"""

import argparse
from pathlib import Path

from gallery import BLUE
from PIL import Image, ImageDraw
from predict import DATA, HEIGHT, stack, strip

from hdmnet import Box, HDMNet, Points, Scribble, Segmentation
from hdmnet.annotations import Annotation

ROWS: tuple[tuple[str, Annotation, str], ...] = (
    ("person", Box(78, 14, 344, 316), "query_1.jpg"),
    ("fish", Scribble([[(75, 70), (200, 58), (265, 72)]]), "query_2.jpg"),
    ("feline", Points([(200, 90), (289, 129), (120, 199)]), "query_1.jpg"),
)
YELLOW = (255, 226, 10)


def draw(photograph: Path, annotation: Annotation) -> Image.Image:
    """Draw the annotation on its photograph, with lines of the same width after resizing."""
    with Image.open(photograph) as image:
        drawn = image.convert("RGB")
    pen, thick = ImageDraw.Draw(drawn), max(1, round(4 * drawn.height / HEIGHT))
    match annotation:
        case Box(x0, y0, x1, y1):
            pen.rectangle((x0, y0, x1, y1), outline=YELLOW, width=thick)
        case Scribble(strokes):
            for stroke in strokes:
                pen.line([(x, y) for x, y in stroke], fill=YELLOW, width=thick)
        case Points(points):
            for x, y in points:
                pen.circle((x, y), 1.5 * thick, fill=YELLOW, outline=(0, 0, 0))
    return drawn


def main() -> None:
    """Parse the command line, segment, and draw a row for each annotation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args()
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    rows = []
    for name, annotation, query in ROWS:
        support, searched = DATA / name / "support_1.jpg", DATA / name / query
        mask = Segmentation(model.pseudo_mask(support, annotation).float())
        answer = model.predict(searched, support, annotation)
        made = [draw(support, annotation), mask.overlay(support, color=BLUE)]
        rows.append(strip(made, [answer.overlay(searched)]))
    stack(rows).save(args.picture, quality=85, optimize=True)


if __name__ == "__main__":
    main()
