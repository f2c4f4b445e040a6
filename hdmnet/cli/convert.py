"""`hdmnet convert`: a released checkpoint becomes a folder that `--model` takes."""

from pathlib import Path

import click


@click.command(
    epilog="""
    \b
    Example:
      hdmnet convert checkpoint.pth hdmnet-resnet50 --check
    """
)
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Load the folder again, and compare everything.")
def convert(checkpoint: Path, out: Path, check: bool) -> None:
    """Convert a checkpoint of the authors' code, or of BAM's base learner.

    No code in the file is run.
    """
    from hdmnet.convert.__main__ import run

    run(checkpoint, out, compare=check)
