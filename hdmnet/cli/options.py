"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

import hdmnet
from hdmnet.cli.files import folder_of_supports

if TYPE_CHECKING:
    import torch

    from hdmnet.annotations import Annotation
    from hdmnet.supports import SupportSet

    Shown: TypeAlias = Path | tuple[list[str], list[Any], list[str]]
    """A file of an encoded class; or supports, their masks, and negatives."""

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(exists=True, dir_okay=False)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
KINDS = ("mask", "box", "point", "not_point")
_ORDER = "hdmnet.order"


def numbers(names: str) -> Callable[[str], tuple[float, ...]]:
    """Return a function that reads numbers with commas between them, such as X,Y."""

    def read(value: str) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in value.split(","))
        except ValueError:
            found = ()
        if len(found) != names.count(",") + 1:
            raise click.BadParameter(f"{value!r} is not {names}: expected numbers, in pixels")
        return found

    return read


class InOrder(click.Command):
    """A command that knows the order of its options: an annotation belongs to a support."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and keep the order of the options."""
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


def model_options(command: Command) -> Command:
    """Add the options that choose a model and a device."""
    command = click.option("--device", help="cpu, cuda, cuda:1, mps. Default: cuda if possible.")(
        command
    )
    return click.option(
        "--model",
        default="hdmnet-lite0",
        show_default=True,
        help="A bundled model, a folder, or a repository user/name of the Hub.",
    )(command)


def support_options(command: Command) -> Command:
    """Add the options that show a class."""
    box, point = "X0,Y0,X1,Y1", "X,Y"
    several: dict[str, Any] = {"multiple": True}
    image: dict[str, Any] = several | {"type": FILE, "metavar": "IMAGE"}
    for option in (
        click.option("--negative", **image, help="An image that does not show it."),
        click.option(
            "--not-point",
            **several,
            type=numbers(point),
            metavar=point,
            help="A pixel that is not on it.",
        ),
        click.option(
            "--point", **several, type=numbers(point), metavar=point, help="A pixel on it."
        ),
        click.option("--box", **several, type=numbers(box), metavar=box, help="A box around it."),
        click.option("--mask", **image, help="The mask of a support."),
        click.option("--support", **image, help="An image that shows it."),
    ):
        command = option(command)
    return command


def choose_device(name: str | None) -> torch.device:
    """Return the device of this name, or by default a GPU of NVIDIA or AMD, if there is one.

    Raises:
        click.UsageError: If it cannot be used.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"--device {name} cannot be used: {reason}") from error


def load_model(name: str, device: str | None) -> hdmnet.HDMNet:
    """Load a model for inference. A terminal says so meanwhile: importing takes seconds."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"loading {name}")):  # as it is: no markup
        place = choose_device(device)
        return hdmnet.HDMNet.from_pretrained(name).to(place).fused()


def class_at(path: Path) -> Shown:
    """Return what shows the class in a file of `hdmnet encode`, or in a folder of supports."""
    return (*folder_of_supports(path), []) if path.is_dir() else path


def encoded(network: hdmnet.HDMNet, shown: Shown) -> SupportSet:
    """Load a class, or encode it."""
    if isinstance(shown, Path):
        return hdmnet.SupportSet.load(shown).to(next(network.parameters()).device)
    supports, masks, negatives = shown
    return network.encode_supports(supports, masks, negatives or None)


def annotated_supports(given: dict[str, Any]) -> tuple[list[str], list[str | Annotation]]:
    """Pair the supports of a command with their masks, boxes and points.

    Each belongs to the support before it. Only if all supports come first, masks alone or boxes
    alone belong to them in their order.

    Args:
        given: The values of `support_options`.

    Returns:
        The supports, and an annotation of each.
    """
    supports = list(given["support"])
    if not supports:
        raise click.UsageError("there is no --support: expected --support IMAGE --mask IMAGE")
    order = list(_in_order(given))
    kinds = [name for name, _ in order]
    for kind in ("mask", "box"):
        if kinds == ["support"] * len(supports) + [kind] * len(supports):
            values = [value for _, value in order[len(supports) :]]
            return supports, [hdmnet.Box(*x) for x in values] if kind == "box" else values
    found: list[dict[str, list[Any]]] = []
    for name, value in order:
        if name == "support":
            found.append({kind: [] for kind in KINDS})
        elif not found:
            raise click.UsageError(
                f"--{name.replace('_', '-')} {value} stands before any --support"
            )
        else:
            found[-1][name].append(value)
    return supports, [_annotation(x, kinds) for x, kinds in zip(supports, found, strict=True)]


def _in_order(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the supports and their annotations in the order of the command line."""
    rest = {name: iter(given[name]) for name in ("support", *KINDS)}
    for name in click.get_current_context().meta[_ORDER]:
        if name in rest:
            yield name, next(rest[name])


def _annotation(support: str, given: dict[str, list[Any]]) -> str | Annotation:
    """Make the annotation of one support."""
    masks, boxes, positive, negative = (given[kind] for kind in KINDS)
    if not masks and not boxes and not positive:
        raise click.UsageError(
            f"no --mask, --box or --point follows --support {support}: expected one for each"
        )
    if len(masks) + len(boxes) + bool(positive) != 1:
        raise click.UsageError(
            f"--support {support} is followed by {len(masks)} masks, {len(boxes)} boxes and "
            f"{len(positive)} points: expected one mask, one box, or points"
        )
    if negative and not positive:
        raise click.UsageError(f"--support {support} has --not-point without --point: add a point")
    if positive:
        return hdmnet.Points(positive, negative)
    return hdmnet.Box(*boxes[0]) if boxes else str(masks[0])
