"""`hdmnet demo`: a page in the browser."""

import logging

import click

from hdmnet.cli.options import load_model, model_options


@click.command(
    epilog="""
    \b
    Examples:
      hdmnet demo
      hdmnet demo --port 8000
    """
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: a free one from 7860.")
@model_options
def demo(host: str, port: int | None, model: str, device: str | None) -> None:
    """Show classes and see masks in the browser.

    Only this machine can open the page, unless --host says otherwise. Needs the extra `demo`.
    """
    from hdmnet.demo import launch

    logging.basicConfig(format="%(message)s")
    logging.getLogger("hdmnet.demo").setLevel(logging.INFO)
    launch(load_model(model, device), model, host=host, port=port)
