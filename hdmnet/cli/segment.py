"""`hdmnet segment`: masks of a class, or of several, in any number of images."""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import click

import hdmnet
from hdmnet.cli.answers import FORMATS, Answers, digest
from hdmnet.cli.files import find_queries
from hdmnet.cli.options import (
    InOrder,
    annotated_supports,
    class_at,
    encoded,
    load_model,
    model_options,
    support_options,
)

if TYPE_CHECKING:
    from hdmnet.images import ImageLike
    from hdmnet.model import HDMNet

AHEAD = 3
"""Batches that wait until a thread has time for them, or for the answer to one before them."""
MOST_THREADS = 8
"""Most threads that segment, each with memory for a batch. They share more cores than these."""
GPU_THREADS = 3
SAVED = ("presence_threshold", "refine", "tile", "self_support")
"""Options of `predict` that change answers."""
MOST_FAILED = 100
"""Largest exit code that counts failed images."""


@click.command(
    cls=InOrder,
    epilog="""
    The exit code is the number of images that failed, at most 100. It is 255 after a wrong command,
    or an error that ended the work, and 130 after Ctrl-C. To go on, repeat the command.

    \b
    Examples:
      hdmnet segment photos --support cat.jpg --mask cat.png --out masks
      hdmnet segment photos --support 1.jpg --box 40,30,220,180 \\
          --support 2.jpg --point 120,90 --point 130,60 --out masks --overlay
      hdmnet segment 'photos/**/*.jpg' --class cat=cat.safetensors --class dog=dogs/ \\
          --out labels --format png --format coco --presence-threshold 0.3
    """,
)
@click.argument("queries", nargs=-1, required=True, type=click.Path())
@support_options
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME=PATH",
    help="A class of several: a file of `hdmnet encode`, or a folder of supports.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    default=("png",),
    show_default="png",
    help="png: a mask, or a label map. json: presence, area, score and box. coco: one file.",
)
@click.option("--overlay", is_flag=True, help="Also draw each answer on its image.")
@click.option(
    "--presence-threshold",
    type=click.FloatRange(0, 1),
    help="Empty the mask of a class that is less likely. Default: the model's own rule.",
)
@click.option("--refine", is_flag=True, help="Let borders follow the edges of the image.")
@click.option("--self-support", is_flag=True, help="Look again with the answer as a support.")
@click.option("--flip", is_flag=True, help="Average with the mirrored image: twice the time.")
@click.option("--tile", type=click.IntRange(32), help="Side in pixels of tiles, for small objects.")
@click.option("--batch-size", type=click.IntRange(1), help="Images computed at once. Default: 1.")
@model_options
@click.option("--overwrite", is_flag=True, help="Segment again what is there already.")
def segment(
    queries: tuple[str, ...],
    classes: tuple[str, ...],
    out: Path,
    formats: tuple[str, ...],
    overlay: bool,
    flip: bool,
    model: str,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> int:
    """Segment images: files, folders, or patterns in quotes.

    NAME.jpg becomes OUT/NAME.png, and folder/a/NAME.jpg becomes OUT/a/NAME.png. An annotation
    belongs to the --support before it. After all supports, only masks, or only boxes, are taken in
    their order.
    """
    options = {name: given[name] for name in (*SAVED, "batch_size")}
    if "coco" in formats:
        _require_coco()
    if out.is_file():
        raise click.UsageError(f"--out {out} is a file: expected a folder")
    found = find_queries(queries, out)
    shown = _shown(classes, given)
    network = load_model(model, device)
    sets = {name: encoded(network, one) for name, one in shown.items()}
    answers = Answers(
        out,
        formats,
        overlay,
        tuple(name for name in sets if name),
        settings={
            # The fingerprint leaves out what changes no support, such as the threshold of presence.
            "model": digest(network.fingerprint(), json.dumps(network.config, sort_keys=True)),
            "classes": [[name, digest(*_sources(one))] for name, one in shown.items()],
            "options": [options[key] for key in SAVED] + [flip],
        },
    )
    todo = answers.todo(found, overwrite=overwrite)
    if skipped := len(found) - len(todo):
        click.echo(f"skipped: {skipped} of {len(found)} images have an answer already", err=True)
    failed = _run(
        todo,
        _Work(
            network,
            sets if classes else sets[""],
            {"augment": hdmnet.Augment(flip=True) if flip else None, **options},
            answers,
        ),
    )
    click.echo(f"answers written to {out}: {len(todo) - failed}; images failed: {failed}", err=True)
    return min(failed, MOST_FAILED)


def _require_coco() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise click.UsageError(
            "--format coco needs pycocotools: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
        ) from error


def _shown(classes: Iterable[str], given: dict[str, Any]) -> dict[str, Any]:
    """Return what shows each class: a file, or supports, masks and negatives.

    A class of `--support` has no name.
    """
    if not classes:
        supports, masks = annotated_supports(given)
        return {"": (supports, masks, list(given["negative"]))}
    if any(given[name] for name in ("support", "mask", "box", "point", "not_point", "negative")):
        raise click.UsageError("got --class and --support: expected one of them")
    shown: dict[str, Any] = {}
    for text in classes:
        name, _, value = text.partition("=")
        path = Path(value)
        if not (name and value and path.exists()):
            raise click.UsageError(f"--class {text}: expected NAME=PATH, with a path that exists")
        if name in shown:
            raise click.UsageError(f"--class {name} is given twice: give it one folder or file")
        shown[name] = class_at(path)
    return shown


def _sources(shown: Any) -> Iterator[str | Path]:
    """Yield what the encoded supports depend on, for a hash."""
    if isinstance(shown, Path):
        yield shown
        return
    supports, masks, negatives = shown
    for part in (*supports, *masks, *negatives):
        yield Path(part) if isinstance(part, str) else repr(part)


@dataclass(frozen=True)
class _Work:
    """What is done with each image: read it, segment it, write its answer."""

    network: HDMNet
    shown: Any
    """The encoded supports, as for `predict`."""
    options: dict[str, Any]
    """Options of `predict`."""
    answers: Answers
    writing: Lock = field(default_factory=Lock)

    def __call__(self, part: Sequence[tuple[str, Path]]) -> list[str]:
        """Segment a batch of images. Return an error for each that failed."""
        images = [_read(path) for _, path in part]
        found: Iterator[Any] = self.network.predict_iter(images, self.shown, **self.options)
        errors = []
        for (name, path), image, answer in zip(part, images, found, strict=True):
            if isinstance(answer, Exception):
                errors.append(str(answer))
                continue
            try:
                with self.writing:
                    self.answers.write(name, path, image, answer)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                errors.append(f"{path}: its name is too long for the files of its answer")
        return errors


def _read(path: Path) -> ImageLike:
    """Read an image. A path that cannot be read stays as it is: `predict_iter` makes the error."""
    try:
        return hdmnet.load_image(path)
    except (OSError, ValueError):
        return path


def _in_threads(work: _Work, parts: Sequence[Sequence[Any]]) -> Generator[list[str]]:
    """Yield the errors of each batch, in their order.

    On a CPU, each thread computes an image with its share of the cores, so one that reads or writes
    keeps no core waiting. On a GPU, one thread computes while the others read and write.
    """
    import torch

    cores = torch.get_num_threads()
    device = next(work.network.parameters()).device.type
    most = {"cpu": cores, "cuda": GPU_THREADS}.get(device, 1)  # others are not made for threads
    workers = max(1, min(most, MOST_THREADS, len(parts)))
    share = max(1, cores // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    waiting: deque[Future[list[str]]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > workers + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(todo: dict[str, Path], work: _Work) -> int:
    """Segment the images, with a progress bar. Return how many failed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from hdmnet.classes import batched

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    parts = list(batched(todo.items(), work.options["batch_size"] or 1))
    failed = 0
    errors = _in_threads(work, parts)
    try:
        # The first answer comes before the bar: it tells whether the supports fit the model.
        first = list(islice(errors, 1))
        with progress:
            task = progress.add_task("", total=len(todo), rate="")
            for part, lost in zip(parts, chain(first, errors), strict=True):
                for error in lost:
                    progress.console.print(f"failed: {error}", markup=False, soft_wrap=True)
                failed += len(lost)
                progress.advance(task, len(part))
                speed = progress.tasks[task].speed
                progress.update(task, rate=f"{speed:.1f} images/s" if speed else "")
    except KeyboardInterrupt:
        click.echo("whole answers are kept: repeat the command to go on", err=True)
        raise
    finally:
        errors.close()
        work.answers.finish()
    return failed
