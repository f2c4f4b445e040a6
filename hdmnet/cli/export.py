"""`hdmnet export`: ONNX graphs, also in int8, for processors without PyTorch."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from hdmnet.cli.files import find_images, folder_of_supports
from hdmnet.cli.options import FOLDER, class_at, encoded, load_model, model_options

CALIBRATED_ON = 64
"""Most pictures that int8 looks at."""


@click.command(
    epilog="""
    \b
    Examples:
      hdmnet export onnx                            # supports.onnx and query.onnx
      hdmnet export fish --class fish.safetensors   # segment.onnx: an image in, a map out
      hdmnet export fish --class fish.safetensors --int8 photos
    """
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--class",
    "shown",
    type=click.Path(exists=True, path_type=Path),
    help="Bake in this class: a file of `hdmnet encode`, or a folder of supports.",
)
@click.option(
    "--int8", multiple=True, type=click.Path(), help="Pictures like the queries, to quantise for."
)
@click.option("--int8-supports", type=FOLDER, help="Supports of any class, to quantise for.")
@model_options
def export(
    out: Path,
    shown: Path | None,
    int8: tuple[str, ...],
    int8_supports: Path | None,
    model: str,
    device: str | None,
) -> None:
    """Write a model as ONNX graphs: two for all classes, or one for one class."""
    if int8_supports and not int8:
        raise click.UsageError("--int8-supports without --int8 has no effect: give pictures too")
    if int8 and not shown and not int8_supports:
        raise click.UsageError("--int8 without --class needs --int8-supports FOLDER too")
    if shown and int8_supports:
        raise click.UsageError("--int8-supports with --class has no effect: leave it out")
    pictures = find_images(int8)[:CALIBRATED_ON]
    if int8 and not pictures:
        raise click.UsageError("--int8 found no image: give pictures like the queries")
    click.echo("exporting: this takes minutes", err=True)
    from hdmnet.onnx import export_onnx, quantize

    network = load_model(model, device)
    supports = encoded(network, class_at(shown)) if shown else None
    with TemporaryDirectory() as folder:
        target = Path(folder) if int8 else out
        written: tuple[Path, ...]
        if supports is None:
            written = export_onnx(network, target)
        else:
            written = (export_onnx(network, target, supports),)
        if int8:
            images, masks = folder_of_supports(int8_supports) if int8_supports else ([], [])
            written = quantize(target, out, pictures, images, masks)
    for path in written:
        click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
