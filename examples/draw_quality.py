"""Draw what `self_support` and flips change: docs/quality.jpg.

    python examples/draw_quality.py docs/quality.jpg

Each row has a support, and three answers to a query: of `predict`, with self-support, and with
self-support and flip.
"""

import argparse
from pathlib import Path

from predict import DATA, outline, stack, strip

from hdmnet import Augment, HDMNet
from hdmnet.options import PredictOptions

ROWS = (("feline", "query_1.jpg"), ("rocket", "query_1.jpg"), ("rocket", "query_2.jpg"))
WAYS: tuple[PredictOptions, ...] = (
    {},
    {"self_support": True},
    {"self_support": True, "augment": Augment()},
)


def main() -> None:
    """Parse the command line, segment, and draw a row for each query."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args()
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    rows = []
    for name, photograph in ROWS:
        support, query = DATA / name / "support_1.jpg", DATA / name / photograph
        mask = support.with_suffix(".png")
        encoded = model.encode_supports(support, mask)
        answers = [model.predict(query, encoded, **way).overlay(query) for way in WAYS]
        rows.append(strip([outline(support, mask)], answers))
    stack(rows).save(args.picture, quality=85, optimize=True)


if __name__ == "__main__":
    main()
