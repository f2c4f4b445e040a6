"""The command `hdmnet`: what the library does, without writing Python.

The modules of this package import no PyTorch until a command runs: so `--help` answers at once.
"""

import sys
import warnings
from traceback import format_exc
from typing import NoReturn

import click

import hdmnet
from hdmnet.cli.convert import convert
from hdmnet.cli.demo import demo
from hdmnet.cli.doctor import doctor
from hdmnet.cli.encode import encode, rate
from hdmnet.cli.evaluate import evaluate
from hdmnet.cli.export import export
from hdmnet.cli.models import models
from hdmnet.cli.segment import segment

ERROR, INTERRUPTED = 255, 130
"""Exit codes. `segment` uses 1 to 100 for the number of images that failed."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Examples:
      hdmnet segment photos --support cat.jpg --mask cat.png --out masks
      hdmnet encode --support cat.jpg --box 40,30,220,180 --out cat.safetensors
      hdmnet segment 'photos/*.jpg' --class cat=cat.safetensors --class dog=dogs/ --out labels

    \b
    Completion of commands and options in the shell (bash; also zsh and fish):
      eval "$(_HDMNET_COMPLETE=bash_source hdmnet)"
    """,
)
@click.version_option(hdmnet.__version__)
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Segment things that you show in a few images."""


for command in (segment, encode, rate, models, convert, export, evaluate, doctor, demo):
    cli.add_command(command)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning as one line, without the code that it came from."""
    click.echo(f"warning: {message}", err=True)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and exit. An error is one line, with a hint if there is one.

    Args:
        arguments: The command line, without the program's name. None: that of the process.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    warnings.showwarning = _warn
    try:
        sys.exit(cli.main(arguments, standalone_mode=False))
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "hdmnet"
        click.echo(f"{path}: {error.format_message()}\nhint: {path} --help", err=True)
    except Exception as error:
        if "--traceback" in arguments:
            click.echo(format_exc(), err=True)
        name = "" if isinstance(error, ImportError | OSError | ValueError) else type(error).__name__
        text = " ".join(f"{name} {error}".split())
        path = " ".join(["hdmnet", *[word for word in arguments if word in cli.commands][:1]])
        click.echo(f"{path}: {text}\nhint: {path} --help", err=True)
    sys.exit(ERROR)
