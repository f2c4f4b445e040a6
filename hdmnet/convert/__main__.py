"""The command `python -m hdmnet.convert checkpoint.pth out/`: official checkpoint → folder."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from hdmnet.convert import Conversion, convert, read_checkpoint
from hdmnet.model import HDMNet


def main(arguments: list[str] | None = None) -> int:
    """Convert a checkpoint, and print what became of each tensor.

    Args:
        arguments: The command line, without the program's name. None: that of the process.

    Returns:
        0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hdmnet.convert",
        description="Turn a released checkpoint of HDMNet, or of the base learner of BAM (PSPNet), "
        "into a folder that HDMNet.from_pretrained loads. No code in the file is run.",
    )
    parser.add_argument("checkpoint", type=Path, help="the .pth file")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--check",
        action="store_true",
        help="load the folder again, and compare all tensors and a forward pass",
    )
    options = parser.parse_args(arguments)
    try:
        run(options.checkpoint, options.out, compare=options.check)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(checkpoint: Path, out: Path, *, compare: bool) -> None:
    """Convert a checkpoint, and print what became of each tensor.

    Args:
        checkpoint: The .pth file.
        out: The folder to write.
        compare: Whether to load the folder again, and compare it with the checkpoint.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the checkpoint is of another kind, or the folder differs from it.
    """
    state_dict, rest = read_checkpoint(checkpoint)
    conversion = convert(state_dict)
    report(conversion, rest)
    conversion.model.save_pretrained(out)
    print(f"written to {out}")
    if compare:
        check(conversion, state_dict, out)


def report(conversion: Conversion, rest: list[str]) -> None:
    """Print what was recognised, and what became of every key.

    Args:
        conversion: The converted checkpoint.
        rest: Names of what the file holds besides the state dict.
    """
    config = conversion.model.config
    print(
        f"recognised: {conversion.kind}, {config['backbone']}, {config['base_classes']} base "
        f"classes, {config['shots']} shot(s), {config['image_size']} px"
    )
    shapes = {key: tuple(value.shape) for key, value in conversion.model.state_dict().items()}
    mapped = [f"{theirs} -> {ours} {shapes[ours]}" for theirs, ours in conversion.mapped.items()]
    dropped = [f"{key}: a copy of a mapped tensor" for key in conversion.dropped]
    dropped += [f"{key}: not a part of the network" for key in rest]
    for title, lines in (
        ("mapped", mapped),
        ("dropped", dropped),
        ("missing, initialised at random: train the matching network", conversion.missing),
    ):
        print(f"{title} ({len(lines)})", *lines, sep="\n  ")


def check(conversion: Conversion, state_dict: dict[str, Tensor], folder: Path) -> None:
    """Compare the written folder with the checkpoint.

    Args:
        conversion: The converted checkpoint.
        state_dict: The tensors of the checkpoint.
        folder: The written folder.

    Raises:
        ValueError: If a tensor or an output differs.
    """
    loaded = HDMNet.from_pretrained(folder)
    tensors = loaded.state_dict()
    for theirs, ours in conversion.mapped.items():
        if not torch.equal(tensors[ours], state_dict[theirs].to(tensors[ours].dtype)):
            raise ValueError(f"{ours} in {folder} differs from {theirs} in the checkpoint")
    generator = torch.Generator().manual_seed(0)
    size = loaded.smallest_size + 8
    query, support = torch.randn(2, 1, 3, size, size, generator=generator)
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    with torch.inference_mode():
        before = conversion.model(query, support[None], mask)
        after = loaded(query, support[None], mask)
    for name in ("final", "meta", "base", "prior"):
        if not torch.equal(getattr(before, name), getattr(after, name)):
            raise ValueError(f"{name} of the loaded folder differs from the converted model's")
    print(
        f"checked: {len(conversion.mapped)} tensors in {folder} equal the checkpoint's, and a "
        f"forward pass at {size} px gives the same output before and after"
    )


if __name__ == "__main__":
    sys.exit(main())
