"""Average the weights of a model before and after fine-tuning: it forgets less.

    python examples/average_weights.py RUN/model OUT --share 0.5

Training on a few classes teaches a model these classes, and makes it forget how to compare others.
The model between the two is often better than both on classes that it was not trained on.

Source: WiSE-FT (arXiv 2109.01903).
"""

import argparse
from pathlib import Path

from hdmnet import HDMNet


def average(before: HDMNet, after: HDMNet, share: float) -> HDMNet:
    """Move the weights of `before` towards those of `after`, in place, and return it.

    Args:
        before: The model that fine-tuning started from.
        after: The fine-tuned model.
        share: 0 gives the weights before, 1 those after.

    Raises:
        ValueError: If the models are not alike.
    """
    if before.config != after.config:
        raise ValueError(
            "the models have different configurations: name the one before with --from"
        )
    tuned = after.state_dict()
    for name, value in before.state_dict().items():  # detached, but the same memory
        if value.is_floating_point():
            value.lerp_(tuned[name].to(value), share)
    return before


def main() -> None:
    """Parse the command line, average, and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tuned", help="the fine-tuned model: a folder or a Hub repository")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--from", dest="start", default="hdmnet-lite0", help="the model before")
    parser.add_argument("--share", type=float, default=0.5, help="of the fine-tuned weights")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share must be in [0, 1], got {args.share}")
    before, after = (HDMNet.from_pretrained(name) for name in (args.start, args.tuned))
    average(before, after, args.share).save_pretrained(args.out)


if __name__ == "__main__":
    main()
