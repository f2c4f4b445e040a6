"""`hdmnet convert`: a released checkpoint becomes a folder that `--model` takes."""

import click

from hdmnet.cli.options import FILE


@click.command(
    epilog="""
    \b
    Example:
      hdmnet convert checkpoint.pth hdmnet-resnet50 --check
    """
)
@click.argument("checkpoint", type=FILE)
@click.argument("out", type=click.Path())
@click.option("--check", is_flag=True, help="Load the folder again, and compare everything.")
def convert(checkpoint: str, out: str, check: bool) -> int:
    """Convert a checkpoint of the authors' code, or of BAM's base learner.

    No code in the file is run.
    """
    from hdmnet.convert.__main__ import main

    return main([checkpoint, out, *(["--check"] if check else [])])
