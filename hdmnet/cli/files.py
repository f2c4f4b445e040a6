"""Finding images: queries in files, folders and patterns, and the supports in a folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

import click

from hdmnet._formats import SUFFIXES


def find_queries(given: Iterable[str], out: Path) -> dict[str, Path]:
    """Find the images of files, folders and patterns.

    Args:
        given: Files; folders, which are searched with their subfolders; or patterns such as
            `photos/**/*.jpg`. Names that begin with a dot are left out.
        out: The folder of the answers, whose images are no queries.

    Returns:
        The images by the name of their answer: their path without suffix, below the folder, or
        below the part of the pattern that has no `*`.
    """
    found: dict[str, Path] = {}
    own = out.resolve()
    for text in given:
        images = list(_expand(text))
        if not images:
            raise click.UsageError(f"{text} holds no image: expected {' '.join(sorted(SUFFIXES))}")
        queries = [(root, path) for root, path in images if own not in path.resolve().parents]
        if not queries:
            raise click.UsageError(f"{text} is below {out}, the folder of the answers")
        for root, path in queries:
            name = path.relative_to(root).with_suffix("").as_posix()
            if found.setdefault(name, path) != path:
                raise click.UsageError(
                    f"{found[name]} and {path} would both be answered in {name}: segment them "
                    "separately, into two folders"
                )
    return found


def find_images(given: Iterable[str]) -> list[Path]:
    """Find images as `find_queries` does. Two of them may have the same name."""
    return [path for text in given for _, path in _expand(text)]


def _expand(text: str) -> Iterator[tuple[Path, Path]]:
    """Yield the images of one argument, each with the folder that its name starts from."""
    path = Path(text)
    if not text:
        raise click.UsageError("an argument is empty: expected a file, a folder or a pattern")
    if path.is_dir():
        yield from ((path, image) for image in _images(_below(path)))
    elif path.is_file():
        yield path.parent, path
    elif glob.has_magic(text):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        yield from ((root, image) for image in _images(glob.glob(text, recursive=True)))
    else:
        raise click.UsageError(f"{text} does not exist: expected a file, a folder or a pattern")


def _below(folder: Path) -> Iterator[str]:
    """Yield the files of a folder and its subfolders, without links to a folder around them."""
    around = {str(folder): {os.path.realpath(folder)}}
    for root, folders, files in os.walk(folder, followlinks=True):
        inside = {x: os.path.realpath(os.path.join(root, x)) for x in folders if x[0] != "."}
        folders[:] = [x for x, real in inside.items() if real not in around[root]]
        around |= {os.path.join(root, x): around[root] | {inside[x]} for x in folders}
        yield from (os.path.join(root, file) for file in files if file[0] != ".")


def _images(paths: Iterable[str]) -> list[Path]:
    """Keep images, in order, and links that lead nowhere: to read these fails."""
    found = (Path(path) for path in paths)
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink())
    )


def folder_of_supports(folder: Path) -> tuple[list[str], list[str]]:
    """List the supports of a class, and their masks.

    Args:
        folder: `images/NAME.jpg` with `masks/NAME.png`, or NAME.jpg with NAME.png beside it.

    Returns:
        The paths of the images and of their masks.
    """
    images, masks = folder / "images", folder / "masks"
    if images.is_dir() and masks.is_dir():
        pictures = _images(map(str, images.iterdir()))
    else:
        masks = folder
        pictures = [p for p in _images(map(str, folder.iterdir())) if p.suffix.lower() != ".png"]
    mask_of = {p.stem: p for p in map(Path, masks.iterdir()) if p.suffix.lower() == ".png"}
    if not pictures:
        raise click.UsageError(
            f"{folder} has no supports: expected images/NAME.jpg with masks/NAME.png, or NAME.jpg "
            "with NAME.png"
        )
    if lacking := [path for path in pictures if path.stem not in mask_of]:
        raise click.UsageError(
            f"{lacking[0]} has no mask: expected {masks / (lacking[0].stem + '.png')}"
        )
    return [str(path) for path in pictures], [str(mask_of[path.stem]) for path in pictures]
