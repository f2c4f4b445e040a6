"""Compare the rate of `hdmnet segment` with that of a loop that only calls `predict`.

    python benchmarks/command_line.py PHOTOS --images 200 --rounds 2

PHOTOS is a folder of photographs. They are reduced to 500 × 375 pixels. The command's time includes
the start of the model, but not of Python. Each command runs between two loops, and is compared with
their mean: a machine may get slower or faster in minutes.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from hdmnet import HDMNet, cli

FISH = Path(__file__).parents[1] / "examples" / "data" / "fish"


def seconds(call: Callable[[], object]) -> float:
    """Measure a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, and print a ratio for each round and option."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    model = HDMNet.from_pretrained("hdmnet-lite0").fused()
    fish = model.encode_supports(FISH / "support_1.jpg", FISH / "support_1.png")
    with TemporaryDirectory() as name:
        folder = Path(name)
        queries = folder / "queries"
        queries.mkdir()
        for path in islice(sorted(args.photos.glob("*.jpg")), args.images):
            Image.open(path).convert("RGB").resize((500, 375)).save(queries / path.name)
        paths = sorted(queries.iterdir())
        fish.save(folder / "fish.safetensors")

        def loop() -> None:
            for path in paths:
                model.predict(path, fish)

        def command(*options: str) -> None:
            shown = f"--class=fish={folder}/fish.safetensors"
            try:
                cli.main(["segment", str(queries), shown, f"--out={folder}/out", *options])
            except SystemExit as stop:
                if stop.code:
                    raise

        model.predict(paths[0], fish)
        before = seconds(loop)
        for options in [[], ["--overlay"]] * args.rounds:
            took = seconds(lambda: command("--overwrite", *options))  # noqa: B023
            after = seconds(loop)
            ratio = (before + after) / 2 / took
            print(
                f"{' '.join(options) or 'masks'}: {ratio:.2f} of the rate of the loop", flush=True
            )
            before = after


if __name__ == "__main__":
    main()
