"""Draw the answers of one call with three classes: docs/classes.jpg.

    python examples/draw_classes.py docs/classes.jpg

Above are the supports, below the queries with the label maps of the answers.
"""

import argparse
from pathlib import Path

from predict import DATA, outline, stack, strip

from hdmnet import HDMNet

NAMES = ("fish", "person", "rocket")


def main() -> None:
    """Parse the command line, segment, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args()
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    shown = {name: DATA / name / "support_1.jpg" for name in NAMES}
    masks = {name: support.with_suffix(".png") for name, support in shown.items()}
    queries = [DATA / name / "query_1.jpg" for name in NAMES]
    answers = model.predict(queries, shown, masks)
    above = [outline(shown[name], masks[name]) for name in NAMES]
    below = [answer.overlay(query) for answer, query in zip(answers, queries, strict=True)]
    stack([strip(above, []), strip(below, [])]).save(args.picture, quality=85, optimize=True)


if __name__ == "__main__":
    main()
