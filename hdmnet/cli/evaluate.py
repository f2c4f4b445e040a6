"""`hdmnet evaluate`: scores on episodes, as the papers measure them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from click.core import ParameterSource

from hdmnet.cli.options import model_options

DATA = ("pascal", "coco", "fss", "json", "folders")
PATH = click.Path(exists=True, path_type=Path)
DRAWN = ("classes", "shots", "episodes", "seed", "order", "query_class", "min_area", "pairs")
"""What says how episodes are drawn, which a list of episodes already says."""


@click.command(
    epilog="""
    `torchrun --nproc-per-node N -m hdmnet evaluate ...` splits the episodes over N processes, with
    identical results. It needs: pip install 'hdmnet[eval]', or '.[eval]' in a clone.

    \b
    Examples:
      hdmnet evaluate pascal VOCdevkit/VOC2012 --model FOLDER --fold 0 --shots 1 --out OUT
      hdmnet evaluate coco COCO --model FOLDER --fold 0 --shots 5 --out OUT
      hdmnet evaluate json MY_IMAGES --annotations MINE.json --out OUT
      hdmnet evaluate folders MY_DATA --class bolt --class nut --out OUT
    """
)
@click.argument("data", type=click.Choice(DATA))
@click.argument("root", type=PATH)
@model_options
@click.option(
    "--network",
    default="hdmnet:HDMNet",
    show_default=True,
    help="MODULE:CLASS of the model: a FewShotModel of your own.",
)
@click.option(
    "--fold",
    type=click.IntRange(0, 3),
    default=0,
    show_default=True,
    help="Of pascal and coco.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    help="Score only this class. May be given several times; default: all of the fold or data.",
)
@click.option("--shots", type=click.IntRange(1), default=1, show_default=True)
@click.option("--episodes", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--annotations", type=PATH, help="COCO file of instances, for json.")
@click.option(
    "--list", type=click.Path(), help="List of images (pascal), or file of class names (fss)."
)
@click.option(
    "--coco-split",
    type=click.Choice(("interleaved", "contiguous")),
    default="interleaved",
    show_default=True,
)
@click.option(
    "--crowd",
    type=click.Choice(("ignore", "class", "background")),
    default="ignore",
    show_default=True,
)
@click.option("--order", type=click.Choice(("list", "balanced")), help="Order of the queries.")
@click.option(
    "--query-class",
    type=click.Choice(("shown", "listed")),
    default="shown",
    show_default=True,
)
@click.option(
    "--min-area", type=click.IntRange(1), help="Pixels that a class needs in a listed image."
)
@click.option(
    "--resize", type=click.Choice(("pad", "stretch")), help="Resize with or without padding."
)
@click.option("--pairs", type=PATH, help="Draw from this list of NAME__LABEL, such as HSNet's.")
@click.option("--load", type=PATH, help="File of episodes to score instead of new ones.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="File that keeps the areas of all labels."
)
@click.option("--pictures", type=int, default=5, show_default=True, help="Answers to draw.")
@click.option(
    "--workers", type=int, default=0, show_default=True, help="Processes that read images."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder to write to.",
)
def evaluate(**given: Any) -> None:
    """Score a model on PASCAL-5i, COCO-20i, FSS-1000 or your own data.

    ROOT is the folder of the data. For coco, it holds `val2014` and
    `annotations/instances_val2014.json`. For folders, it holds `CLASS/images/NAME.jpg` and
    `CLASS/masks/NAME.png`.
    """
    args = SimpleNamespace(**given)
    if args.data == "json" and args.annotations is None:
        raise click.UsageError("json needs --annotations")
    # The papers have their own rules. Other data is scored with all classes alike, as by `predict`.
    published = args.data in ("pascal", "coco")
    args.order = args.order or ("list" if published else "balanced")
    args.min_area = args.min_area or (2048 if published else 1)
    args.resize = args.resize or ("pad" if published else "stretch")
    if args.load:
        context = click.get_current_context()
        for option in context.command.params:
            if option.name not in DRAWN:
                continue
            if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--load names the episodes: leave out {option.opts[0]}")
            setattr(args, option.name, None)
    from hdmnet.cli import scoring

    scoring.run(args)
