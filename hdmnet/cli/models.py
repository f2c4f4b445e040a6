"""`hdmnet models`: the weights that have a name."""

import click

import hdmnet


@click.command(
    epilog="""
    \b
    Example:
      hdmnet models
    """
)
def models() -> None:
    """List the bundled models, and what is known of them."""
    for info in hdmnet.list_pretrained():
        megabytes = f"{info.size / 1e6:.1f} MB"
        click.echo(f"{info.name}: {info.backbone}, {info.image_size} px, {megabytes}")
        click.echo(f"  made by: {info.source}")
        click.echo(f"  trained on: {info.trained_on}")
        click.echo(f"  measured: {info.metric}, on {info.protocol}")
        click.echo(f"  license: {info.licence}")
