"""Fetch the pictures of the training scenes from Debian packages, and write their catalogue.

    python fetch.py --out DATA

This writes `DATA/objects/**.png` (cut-outs with transparency), `DATA/backgrounds/*.jpg` and
`DATA/catalogue.json`. It needs Debian or Ubuntu, and `resvg_py` for vector drawings. It downloads
packages with `apt-get download` and unpacks them with `dpkg-deb -x`. It installs nothing and does
not need root. Git ignores the data folder.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import resvg_py
from catalogue import Cutout, classify, save_catalogue
from PIL import Image
from tqdm import tqdm

logger = logging.getLogger(__name__)

OBJECT_SIDE = 360
BACKGROUND_SIDE = 768
SMALLEST_OBJECT = 40
SMALLEST_BACKGROUND = 200

STAMPS = "tuxpaint-stamps-default"
FURNITURE = "sweethome3d-furniture"
SCRATCH = "scratch"
GCOMPRIS = "gcompris-qt-data"


@dataclass(frozen=True)
class Backgrounds:
    """The backgrounds of one package: files that match `include` and do not match `exclude`."""

    package: str
    include: str
    exclude: str = "$^"


BACKGROUNDS = (
    # Buildings and landscapes only. The patterns match paths inside the resource files.
    Backgrounds(
        GCOMPRIS,
        r"categorization/.*/(monuments/|renewable/(dam|geothermal))"
        r"|explore_monuments/"
        r"|details/.*/(Chenonceau|Egeskov\w+|EilanDonan\w+|Gizah\w+|Louvre\w+|NDP|Nagoya"
        r"|Neuschwanstein|OperaSidney|TajMahal|TourEiffel|TowerBridge\w+)_background",
        # Excluded: pictures with cars, and a duplicate.
        r"aulaPalatina|arlesAmphitheater|mysorePalace|monument3|greatPyramidOfGiza",
    ),
    Backgrounds(
        SCRATCH,
        r"Media/Backgrounds/.*\.jpg",
        # Excluded: drawings, and pictures with cars.
        r"party-room|room\d|spotlight|woods-and-bench|school2|mural|movies\.jpg|parking",
    ),
    Backgrounds(
        "tuxpaint-data", r"templates/.*\.jpg|starters/(reef|skyline).*-back\.(jpe?g|png)", r"sheep"
    ),
    Backgrounds("mate-backgrounds", r"nature/", r"LadyBird"),
    # Excluded: among others, a photograph of two dogs.
    Backgrounds("lomiri-wallpapers-16.04", r"backgrounds/.*\.jpg", r"friends|Dragonfly|seeding"),
    Backgrounds("lomiri-wallpapers-20.04", r"backgrounds/.*\.jpg", r"Kleiber"),
    Backgrounds(
        "plasma-workspace-wallpapers",
        r"wallpapers/(Altai|Autumn|BytheWater|Canopee|Cluster|ColdRipple|ColorfulCups|DarkestHour"
        r"|Elarun|FallenLeaf|Flow|Grey|IceCold|Kite|Kokkini|OneStandsOut|Opal|Path|Shell|Volna"
        r"|summer_1am)/contents/images/",
    ),
    Backgrounds(
        "lxqt-themes",
        r"wallpapers/(Valendas|after-the-rain|appleflower|beam|cloud|drop|flowers|fog"
        r"|this-is-not-windows)\.",
    ),
    Backgrounds("palapeli-data", r"backgrounds/.*\.jpg|collection/(castle|citrus).*\.jpg"),
    # Included: a few abstract pictures.
    Backgrounds("gnome-backgrounds", r"gnome/(grid-d|licorice-l|truchet-l|wood-[dl])\.webp"),
    Backgrounds("ukui-wallpapers", r"backgrounds/(fluent-color|rhythm|string)\."),
)

PEOPLE = (
    "amon1 anjuli-? anna-? breakdancer[123] calvrett* cassy-* chamak? dan[1-6] ed football-* jay"
    " jodi? lee-fan mako-* marissa* nathan nina1 paul1 referee? ribbon-dancer sam thai-dancer*"
)
THINGS = (
    "cheesy-puffs fire-hydrant flower-vase fortune_cookie fruit_platter hair1 hair2 lamp lego"
    " manhole marble-building rock umbrella"
)
SCRATCH_FOLDERS = {
    # (folder of costumes, patterns of names): folder here. Photographs, and drawings of people.
    ("Animals", "bird-flying"): "animals/birds",
    ("Animals", "buffalo1 cow1"): "animals/mammals/bovines",
    ("People", PEOPLE): "people",
    ("People", "*"): "people/drawn",
    ("Things", THINGS): "things",
}


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, and raise a RuntimeError with its messages if it fails."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed for {command[-1]}: {result.stderr.strip()}")


def unpack(package: str, out: Path) -> Path:
    """Download and unpack a Debian package unless its folder exists, and return the folder."""
    folder = out / "packages" / package
    if folder.is_dir():
        return folder
    debs = out / "deb"
    debs.mkdir(parents=True, exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        run("apt-get", "download", "-qq", package, cwd=debs)
    archive = max(debs.glob(f"{package}_*.deb"))
    temporary = folder.with_name(f"{package}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    run("dpkg-deb", "-x", archive, temporary, cwd=debs)
    return temporary.rename(folder)


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the (path, content) of the files in a compiled Qt resource file (`.rcc`).

    The file has a header, a tree of nodes of fixed size, a table of names and a table of contents.
    Files compressed with zstd are skipped: the packages used here have none.
    """
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError(f"not a Qt resource file: it starts with {magic!r}, not with b'qres'")
    node_size = 14 if version == 1 else 22
    compressed, directory, zstd = 1, 2, 4
    pending = [(0, "")]
    while pending:
        index, parent = pending.pop()
        name_at, flags = struct.unpack_from(">IH", data, tree + index * node_size)
        path = parent
        if index:  # the root has no name
            (length,) = struct.unpack_from(">H", data, names + name_at)
            start = names + name_at + 6  # after the length and a hash
            path = f"{parent}/{data[start : start + 2 * length].decode('utf-16-be')}"
        first, second = struct.unpack_from(">II", data, tree + index * node_size + 6)
        if flags & directory:
            pending += [(child, path) for child in range(second, second + first)]
        elif not flags & zstd:
            start = contents + second
            (length,) = struct.unpack_from(">I", data, start)
            blob = data[start + 4 : start + 4 + length]
            yield path, zlib.decompress(blob[4:]) if flags & compressed else blob


def save(image: Image.Image, path: Path) -> None:
    """Save an image as PNG or JPEG, depending on its name, by an atomic write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    image.save(temporary, quality=92)  # JPEG only
    temporary.replace(path)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale an image down so that its longer side is at most `side`."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.size]
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def cut_out(image: Image.Image) -> Image.Image | None:
    """Crop an object to its visible part, or return None if it is not a usable cut-out.

    It is not usable if nothing is visible, if it is an opaque rectangle or a glow, or if it is
    smaller than `SMALLEST_OBJECT`.
    """
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
    if box is None:
        return None
    image = shrink(image.crop(box), OBJECT_SIDE)
    alpha = np.asarray(image.getchannel("A")) / 255.0
    if max(image.size) < SMALLEST_OBJECT or (alpha > 0.5).mean() > 0.985:
        return None
    return image if (alpha > 0.5).sum() > 0.75 * (alpha > 0.1).sum() else None


def render(path: Path) -> Image.Image:
    """Read a bitmap, or render a vector drawing (SVG)."""
    if path.suffix == ".svg":
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=2 * OBJECT_SIDE)
        return Image.open(io.BytesIO(bytes(png)))
    return Image.open(path)


Opener = Callable[[], Image.Image]


def stamp_sources(out: Path) -> Iterator[tuple[str, str, bool, Opener]]:
    """Yield (folder, name, whether it is a vector drawing, opener) of each Tux Paint stamp."""
    root = unpack(STAMPS, out) / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*")):
        # A drawing that is stored as SVG and as PNG counts once.
        vector = path.suffix == ".svg" and not path.with_suffix(".png").exists()
        if vector or path.suffix == ".png":
            folder = path.parent.relative_to(root).as_posix()
            yield folder, path.stem, vector, partial(render, path)


def furniture_sources(out: Path) -> Iterator[tuple[str, str, bool, Opener]]:
    """Yield the rendered icons of the Sweet Home 3D furniture, in the form of `stamp_sources`."""
    root = unpack(FURNITURE, out) / "usr/share/sweethome3d/furniture"
    for library in sorted(root.glob("*.sh3f")):
        with zipfile.ZipFile(library) as archive:
            for member in sorted(archive.namelist()):
                path = PurePosixPath(member)
                if path.suffix == ".png" and len(path.parts) == 2:
                    picture = io.BytesIO(archive.read(member))
                    yield "furniture", path.stem, False, partial(Image.open, picture)


def scratch_sources(out: Path) -> Iterator[tuple[str, str, bool, Opener]]:
    """Yield the selected costumes of Scratch, in the form of `stamp_sources`."""
    root = unpack(SCRATCH, out) / "usr/share/scratch/Media/Costumes"
    for path in sorted(root.glob("*/*.[gp][in][fg]")):
        for (costumes, patterns), folder in SCRATCH_FOLDERS.items():
            if path.parent.name == costumes and any(
                fnmatchcase(path.stem, pattern) for pattern in patterns.split()
            ):
                yield folder, path.stem, False, partial(render, path)
                break


def fetch_objects(out: Path) -> list[Cutout]:
    """Write all objects that a split uses, and return their catalogue entries."""
    found: dict[str, Cutout] = {}
    for sources in (stamp_sources, scratch_sources, furniture_sources):
        for folder, name, vector, opener in tqdm(sources(out), desc=sources.__name__, unit="file"):
            cutout = classify(folder, name, vector=vector)
            if cutout is None or cutout.path in found:
                continue
            try:
                image = cut_out(opener())
            except ValueError as error:  # a few vector drawings have no valid size
                logger.warning("skipped %s: %s", cutout.path, error)
                continue
            if image is not None:
                found[cutout.path] = cutout
                save(image, out / cutout.path)
    return list(found.values())


def background_sources(out: Path) -> Iterator[tuple[str, Opener]]:
    """Yield (name, opener) of each background."""
    for wanted in BACKGROUNDS:
        root = unpack(wanted.package, out)
        if wanted.package == GCOMPRIS:
            files = (
                (f"{library.stem}{path}", partial(Image.open, io.BytesIO(blob)))
                for library in sorted(root.rglob("*.rcc"))
                for path, blob in read_rcc(library.read_bytes())
                if path.endswith(".webp")
            )
        else:
            files = (
                (path.as_posix(), partial(Image.open, path))
                for path in sorted(root.rglob("*"))
                if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
                and path.is_file()
                and not path.is_symlink()
            )
        for path, opener in files:
            if re.search(wanted.include, path) and not re.search(wanted.exclude, path):
                # All sizes of a wallpaper get the same name, that of its folder, so one is kept.
                parts = PurePosixPath(path).with_suffix("").parts
                name = parts[-4] if parts[-2] == "images" else parts[-1]
                yield f"{wanted.package}-{name.lower()}", opener


def fetch_backgrounds(out: Path) -> int:
    """Write the backgrounds, and return their number."""
    names: set[str] = set()
    for name, opener in tqdm(background_sources(out), desc="backgrounds", unit="file"):
        if name in names:
            continue
        image = opener()
        image.draft("RGB", (2 * BACKGROUND_SIDE, 2 * BACKGROUND_SIDE))
        image = shrink(image.convert("RGB"), BACKGROUND_SIDE)
        if min(image.size) >= SMALLEST_BACKGROUND:
            names.add(name)
            save(image, out / "backgrounds" / f"{name}.jpg")
    return len(names)


def main() -> None:
    """Parse the command line, and fetch objects and backgrounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="data folder to write")
    out: Path = parser.parse_args().out.resolve()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for pictures in ("objects", "backgrounds"):  # remove the pictures of earlier runs
        shutil.rmtree(out / pictures, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / ".gitignore").write_text("*\n", encoding="utf-8")
    cutouts = fetch_objects(out)
    save_catalogue(out, cutouts)
    logger.info("%d objects", len(cutouts))
    logger.info("%d backgrounds", fetch_backgrounds(out))


if __name__ == "__main__":
    main()
