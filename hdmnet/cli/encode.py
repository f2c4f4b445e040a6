"""`hdmnet encode` and `hdmnet rate`: what people do with supports before they segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hdmnet.cli.files import folder_of_supports
from hdmnet.cli.options import (
    FOLDER,
    InOrder,
    annotated_supports,
    load_model,
    model_options,
    support_options,
)


def shown(folder: Path | None, given: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Return the supports and masks of a folder, or of the options."""
    if folder is None:
        return annotated_supports(given)
    if any(given[name] for name in given if name != "negative"):
        raise click.UsageError(f"got {folder} and --support too: expected one of them")
    return folder_of_supports(folder)


@click.command(
    cls=InOrder,
    epilog="""
    \b
    Examples:
      hdmnet encode --support 1.jpg --mask 1.png --support 2.jpg --mask 2.png --out cat.safetensors
      hdmnet encode --support 1.jpg --box 40,30,220,180 --out cat.safetensors
      hdmnet encode cats/ --negative dog.jpg --out cat.safetensors
    """,
)
@click.argument("folder", type=FOLDER, required=False)
@support_options
@model_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
def encode(folder: Path | None, out: Path, model: str, device: str | None, **given: Any) -> None:
    """Encode a class once, for any number of images.

    FOLDER holds images/NAME.jpg with masks/NAME.png, or NAME.jpg with NAME.png. Without it, the
    options show the class.
    """
    if out.is_dir():
        raise click.UsageError(f"--out {out} is a folder: expected a file, such as cat.safetensors")
    supports, masks = shown(folder, given)
    negatives = list(given["negative"]) or None
    encoded = load_model(model, device).encode_supports(supports, masks, negatives)
    encoded.save(out)
    click.echo(f"{out}: supports: {encoded.shots}")


@click.command(
    cls=InOrder,
    epilog="""
    \b
    Examples:
      hdmnet rate cats/
      hdmnet rate cats/ --choose 5
      hdmnet rate --support 1.jpg --mask 1.png --support 2.jpg --mask 2.png
    """,
)
@click.argument("folder", type=FOLDER, required=False)
@support_options
@model_options
@click.option("--choose", type=click.IntRange(1), help="Mark this many as the best choice.")
def rate(
    folder: Path | None, choose: int | None, model: str, device: str | None, **given: Any
) -> None:
    """Rate how well supports agree, worst last: a wrong mask has a low agreement.

    FOLDER is as for `hdmnet encode`.
    """
    if given["negative"]:
        raise click.UsageError("--negative has no effect on ratings: leave it out")
    supports, masks = shown(folder, given)
    if choose and choose > len(supports):
        raise click.UsageError(f"--choose {choose}: there are only {len(supports)} supports")
    ratings = load_model(model, device).rate_supports(supports, masks)
    width = max(map(len, supports))
    click.echo(f"agreement  {'support':{width}}  mask")
    for place, rating in enumerate(ratings):
        chosen = "  chosen" if choose and place < choose else ""
        support = f"{supports[rating.index]:{width}}"
        click.echo(f"{rating.agreement:9.2f}  {support}  {masks[rating.index]}{chosen}")
