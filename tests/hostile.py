"""What strangers may feed in: each attempt makes its input and uses it, and says what it got."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from conftest import make
from PIL import Image
from safetensors.torch import load, save

from hdmnet import EpisodeLoss, HDMNet, SupportSet
from hdmnet.nn._resize import nearest, widen_small

Attempt = Callable[[Path], str]
SIZE = (50, 60)
ATTEMPTS: dict[tuple[str, str], Attempt] = {}
"""(kind, what is fed in) → the attempt, which gets an empty folder."""


def attempt(kind: str, what: str) -> Callable[[Attempt], Attempt]:
    """Add an attempt to the list."""

    def add(function: Attempt) -> Attempt:
        ATTEMPTS[kind, what] = function
        return function

    return add


def photograph(size: tuple[int, int] = SIZE) -> Image.Image:
    """A small picture, always the same."""
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(format: str, size: tuple[int, int] = SIZE, **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    photograph(size).save(buffer, format, **options)
    return buffer.getvalue()


def segment(query: object, mask: object = None, support: object = None) -> str:
    """Predict with the smallest of models, and tell the answer's size."""
    support = photograph() if support is None else support
    if mask is None:
        mask = np.zeros(SIZE, np.uint8)
        mask[10:30, 20:40] = 1
    result = MODEL.predict(query, support, mask)
    assert result.probability.isfinite().all()
    return f"works: a mask of {result.mask.shape[0]} × {result.mask.shape[1]}"


MODEL = make(backbone="mobilenetv3_small_050", base_classes=2, dim=16, heads=(1, 2), image_size=49)


# Images


def image_file(what: str, content: bytes, name: str = "query.png") -> None:
    """An attempt to segment a file."""

    def use(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return segment(folder / name)

    attempt("image", what)(use)


def image(what: str, make_image: Callable[[], object]) -> None:
    """An attempt to segment an object."""
    attempt("image", what)(lambda _: segment(make_image()))


def png(width: int, height: int) -> bytes:
    """A one-bit black PNG, of any size, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def huge_exif() -> bytes:
    """A PNG with eight megabytes of EXIF."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 8_000_000
    return encoded("PNG", exif=exif)


image_file("a PNG cut in half", encoded("PNG")[:4000])
image_file("a JPEG cut in half", encoded("JPEG")[:1500])
image_file("a file of 0 bytes", b"")
image_file("a web page", b"<!doctype html><title>Sign in</title>")
image_file("a PNG whose pixels are garbage", encoded("PNG")[:60] + b"\xff" * 500)
image_file("a PNG of 1 × 1", encoded("PNG", (1, 1)))
image_file("a PNG of 3 × 20000", encoded("PNG", (3, 20000)))
image_file("a PNG of 20000 × 3", encoded("PNG", (20000, 3)))
image_file("a decompression bomb: 50000 × 50000 in 304 kB", png(50_000, 50_000))
image_file("an EPS file, which is a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
image_file("8 MB of EXIF", huge_exif())
image_file("an animated GIF", encoded("GIF", save_all=True, append_images=[photograph()]))


@attempt("image", "a CMYK JPEG")
def _(folder: Path) -> str:
    photograph().convert("CMYK").save(folder / "cmyk.jpg")
    return segment(folder / "cmyk.jpg")


@attempt("image", "a 16-bit PNG")
def _(folder: Path) -> str:
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(folder / "16.png")
    return segment(folder / "16.png")


@attempt("image", "a folder")
def _(folder: Path) -> str:
    return segment(folder)


@attempt("image", "a path that does not exist")
def _(folder: Path) -> str:
    return segment(folder / "none.png")


image("a tensor with NaN", lambda: torch.full((3, *SIZE), torch.nan))
image("a tensor with infinity", lambda: torch.full((3, *SIZE), torch.inf))
image("a float array with NaN", lambda: np.full((*SIZE, 3), np.nan))
image("an array with negative strides", lambda: np.asarray(photograph())[::-1, ::-1])
image("a read-only array", lambda: np.asarray(photograph()))
image("an array with 2 channels", lambda: np.zeros((*SIZE, 2), np.uint8))
image("a tensor with 5 channels", lambda: torch.zeros(5, *SIZE))
image("an array with channels first", lambda: np.zeros((3, *SIZE), np.uint8))
image("a batch of one", lambda: torch.zeros(1, 3, *SIZE))
image("an array of no pixels", lambda: np.zeros((0, 5, 3), np.uint8))
image("an int64 array", lambda: np.zeros((*SIZE, 3), np.int64))
image("a complex tensor", lambda: torch.zeros(3, *SIZE, dtype=torch.complex64))
image("a tensor without values (meta device)", lambda: torch.zeros(3, *SIZE, device="meta"))
image("None", lambda: None)
image("bytes", lambda: encoded("PNG"))


# Masks


def mask(what: str, make_mask: Callable[[], object]) -> None:
    """An attempt to use a mask."""
    attempt("mask", what)(lambda _: segment(photograph(), make_mask()))


def pixels(*values: float, dtype: type = np.uint8) -> np.ndarray:
    """A mask of 0, with some values in a row."""
    array = np.zeros(SIZE, dtype)
    array[20, 30 : 30 + len(values)] = values
    return array


mask("empty", lambda: np.zeros(SIZE, np.uint8))
mask("all foreground", lambda: np.ones(SIZE, np.uint8))
mask("all ignored but one pixel", lambda: np.where(pixels(1) == 1, 1, 255).astype(np.uint8))
mask("one pixel", lambda: pixels(1))
mask("float 0 and 1", lambda: pixels(1, 1, dtype=np.float32))
mask("float 0.5", lambda: pixels(0.5, 1, dtype=np.float32))
mask("NaN", lambda: pixels(np.nan, dtype=np.float32))
mask("labels out of range", lambda: pixels(1, 2, 7))
mask("negative labels", lambda: pixels(-1, dtype=np.int64))
mask("of another size", lambda: np.ones((60, 50), np.uint8))
mask("in colour", lambda: np.zeros((*SIZE, 3), np.uint8))
mask("probabilities of a JPEG", lambda: Image.open(io.BytesIO(encoded("JPEG"))).convert("L"))
mask("without values (meta device)", lambda: torch.zeros(SIZE, device="meta"))


@attempt("mask", "two masks for one support")
def _(_: Path) -> str:
    return str(MODEL.predict(photograph(), [photograph()], [pixels(1), pixels(1)]))


@attempt("mask", "None for one of two")
def _(_: Path) -> str:
    return str(MODEL.predict(photograph(), [photograph(), photograph()], [pixels(1), None]))


# Weights


def weights(what: str, change: Callable[[bytes], bytes]) -> None:
    """An attempt to load a model whose weights were changed."""

    def use(folder: Path) -> str:
        MODEL.save_pretrained(folder / "model")
        file = folder / "model" / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        HDMNet.from_pretrained(folder / "model")
        return "works"

    attempt("weights", what)(use)


def reheaded(edit: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    """Change the header of a safetensors file, and nothing else."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return change


def retensored(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    """Change the tensors of a safetensors file."""

    def change(content: bytes) -> bytes:
        tensors = load(content)
        edit(tensors)
        return save(tensors, {"format": "pt"})

    return change


NAME = "cascade.classifier.0.weight"


def _overlap(header: dict) -> None:
    first, second = [entry for entry in header.values() if "dtype" in entry][:2]
    second["data_offsets"] = first["data_offsets"]


def _twice(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length]
    entry = json.dumps({NAME: json.loads(text)[NAME]})[1:-1].encode()
    text = text.rstrip()[:-1] + b"," + entry + b"}"
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


weights("cut in half", lambda x: x[: len(x) // 2])
weights("0 bytes", lambda _: b"")
weights("a pickle", lambda _: pickle.dumps({"weight": 1}))
weights("a header of 2⁶³ bytes, it says", lambda x: struct.pack("<Q", 2**63) + x[8:])
weights("a header longer than the file", lambda x: struct.pack("<Q", 2 * len(x)) + x[8:])
weights("a header that is no JSON", lambda x: x[:8] + b"!" + x[9:])
weights("a shape larger than its bytes", reheaded(lambda h: h[NAME].update(shape=[10**6, 10**6])))
weights("a shape of negative length", reheaded(lambda h: h[NAME].update(shape=[-1, 16, 1, 1])))
weights("offsets beyond the file", reheaded(lambda h: h[NAME].update(data_offsets=[0, 2**40])))
weights("overlapping offsets", reheaded(_overlap))
weights("a name twice in the header", _twice)
weights("an unknown dtype", reheaded(lambda h: h[NAME].update(dtype="F31")))
weights("bytes after the end", lambda x: x + b"surplus")
weights("a missing tensor", retensored(lambda t: t.pop(NAME)))
weights("a surplus tensor", retensored(lambda t: t.update(extra=torch.zeros(1))))
weights("a tensor of another shape", retensored(lambda t: t.update({NAME: torch.zeros(2)})))
weights("an integer tensor", retensored(lambda t: t.update({NAME: t[NAME].long()})))
weights("float64 in place of float32", retensored(lambda t: t.update({NAME: t[NAME].double()})))
weights("NaN", retensored(lambda t: t[NAME].fill_(torch.nan)))
weights("infinity", retensored(lambda t: t[NAME].fill_(torch.inf)))


# Configurations


def config(what: str, change: Callable[[dict], str | bytes]) -> None:
    """An attempt to load a model whose configuration was changed."""

    def use(folder: Path) -> str:
        MODEL.save_pretrained(folder / "model")
        file = folder / "model" / "config.json"
        content = change(json.loads(file.read_text()))
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        HDMNet.from_pretrained(folder / "model")
        return "works"

    attempt("configuration", what)(use)


def setting(what: str, **values: object) -> None:
    """One of other values."""
    config(what, lambda x: json.dumps(x | values))


setting("an unknown key", colour="red")
setting("a newer version", config_version=99)
setting("a version that is no number", config_version="1")
setting("a string for a number", dim="64")
setting("a fraction for a number", shots=1.5)
setting("a number for a name", backbone=7)
setting("a list for a name", backbone=["resnet50"])
setting("an unknown backbone", backbone="resnet5000")
setting("a backbone to be downloaded", backbone="hf-hub:someone/evil")
setting("a backbone on disk", backbone="local-dir:/tmp/evil")
setting("a download asked for", pretrained_backbone=True)
setting("a negative number", shots=-1)
setting("dim = 10⁹", dim=10**9)
setting("dim = 16384, 20 GB of parameters", dim=16384, heads=[1, 2])
setting("10⁶ base classes, 2 GB of parameters", base_classes=10**6)
setting("10³⁰ base classes", base_classes=10**30)
setting("40 stages", heads=[1] * 40)
setting("a million stages", heads=[1] * 10**6)
setting("another backbone, of 600 MB", backbone="vgg16", image_size=473)
setting("image_size = 10⁹", image_size=10**9)
setting("NaN for a probability", dropout=float("nan"))
setting("a probability of 7", feature_dropout=7)
setting("a string for a bool", frozen_norm="no")
config("a list", lambda _: "[]")
config("no JSON", lambda _: "{")
config("no text", lambda _: b"\xff\xfe")
config("100000 nested lists", lambda _: "[" * 100_000)
config("2 MB", lambda _: json.dumps({"backbone": "x" * 2**21}))
config("a number of 10000 digits", lambda _: '{"dim": ' + "9" * 10_000 + "}")


# Names and folders


def name(what: str, value: str) -> None:
    """An attempt to load a model by name."""

    def use(folder: Path) -> str:
        os.chdir(folder)
        HDMNet.from_pretrained(value, local_files_only=True, cache_dir=folder / "cache")
        return "works"

    attempt("name", what)(use)


name("a path traversal", "../../etc/passwd")
name("a traversal in a repository's name", "user/../../secret")
name("an absolute path", "/etc/passwd")
name("an empty name", "")
name("a name with a NUL", "user/re\0po")
name("a URL", "https://example.com/model")
name("a name of 5000 characters", "u/" + "x" * 5000)


@attempt("name", "a symlink to a folder")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder / "model")
    (folder / "link").symlink_to(folder / "model")
    HDMNet.from_pretrained(folder / "link")
    return "works"


@attempt("name", "a symlink that leads nowhere")
def _(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "none")
    HDMNet.from_pretrained(folder / "link")
    return "works"


@attempt("name", "a folder whose weights are a folder")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    HDMNet.from_pretrained(folder)
    return "works"


@attempt("name", "a folder that must not be read")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder / "model")
    (folder / "model" / "config.json").chmod(0)
    user = os.geteuid()
    folder.chmod(0o755)
    try:
        if user == 0:  # root reads everything
            os.chdir(folder)
            os.seteuid(65534)
        HDMNet.from_pretrained("model")
    finally:
        os.seteuid(user)
    return "works"


@attempt("name", "saving into a file's path")
def _(folder: Path) -> str:
    (folder / "file").write_text("mine")
    try:
        MODEL.save_pretrained(folder / "file")
    finally:
        assert (folder / "file").read_text() == "mine"
    return "works"


# Support sets


def support_set(what: str, change: Callable[[bytes], bytes]) -> None:
    """An attempt to use a support set whose file was changed."""

    def use(folder: Path) -> str:
        path = folder / "set.safetensors"
        MODEL.encode_supports(photograph(), pixels(1, 1, 1)).save(path)
        path.write_bytes(change(path.read_bytes()))
        MODEL.predict(photograph(), SupportSet.load(path))
        return "works"

    attempt("support set", what)(use)


def edited(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    """Change the tensors of a support set, and keep its fingerprint."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        edit(tensors)
        return save(tensors, about)

    return change


support_set("cut in half", lambda x: x[: len(x) // 2])
support_set("0 bytes", lambda _: b"")
support_set("of no model", lambda _: save({"a": torch.zeros(1)}))
support_set("without prototypes", edited(lambda t: t.pop("prototypes")))
support_set("without a value", edited(lambda t: t.pop("tokens.0.value")))
support_set("with a surplus tensor", edited(lambda t: t.update(extra=torch.zeros(1))))
support_set("of another rank", edited(lambda t: t.update(prototypes=torch.zeros(3))))
support_set("of another width", edited(lambda t: t.update(prototypes=torch.zeros(1, 1, 7))))
support_set("of integers", edited(lambda t: t.update(gram=t["gram"].long())))
support_set("with NaN", edited(lambda t: t["gram"].fill_(torch.nan)))


@attempt("support set", "of another model")
def _(folder: Path) -> str:
    MODEL.encode_supports(photograph(), pixels(1)).save(folder / "set")
    other = HDMNet(**MODEL.config).eval()
    other.predict(photograph(), SupportSet.load(folder / "set"))
    return "works"


# Use


@attempt("use", "eight threads on one model")
def _(_: Path) -> str:
    queries = [np.asarray(photograph())[i:, i:] for i in range(8)]
    supports = MODEL.encode_supports(photograph(), pixels(1, 1, 1))
    alone = [MODEL.predict(query, supports) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: MODEL.predict(query, supports), queries))
    pairs = zip(alone, together, strict=True)
    assert all(torch.equal(a.probability, b.probability) for a, b in pairs)
    return "works: the answers of one thread"


def run(script: str, *arguments: object) -> str:
    """Run a file beside this one in a new process, which must end."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


for method in ("fork", "spawn"):
    attempt("use", f"a pool of workers made by {method}, after the parent has computed")(
        lambda _, method=method: run("in_a_pool.py", method)
    )


@attempt("use", "predictions in the middle of training")
def _(_: Path) -> str:
    def train(*, predicts: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = make(**MODEL.config | {"image_size": 49, "frozen_norm": False}).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            query, support = torch.randn(2, 2, 3, 49, 49)
            mask = torch.zeros(2, 1, 49, 49)
            mask[..., 10:30, 10:30] = 1
            if predicts:
                model.predict(photograph(), photograph(), pixels(1, 1))
            losses = EpisodeLoss()(model(query, support[:, None], mask), mask[:, 0].long())
            optimizer.zero_grad()
            losses.total.backward()
            if predicts:
                model.predict(photograph(), photograph(), pixels(1, 1))
            optimizer.step()
        return [*model.state_dict().values(), torch.get_rng_state()]

    pairs = zip(train(predicts=False), train(predicts=True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    return "works: not a bit of the trained weights changes"


@attempt("use", "Ctrl-C at ten moments of a save")
def _(folder: Path) -> str:
    model, interrupted = HDMNet(**MODEL.config), 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for moment in range(0, 30, 3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(moment)
            try:
                signal.setitimer(signal.ITIMER_REAL, moment * 4e-4)  # 0 is never
                model.save_pretrained(folder)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            again = HDMNet.from_pretrained(folder)
            (found,) = {value for p in again.parameters() for value in p.unique().tolist()}
            assert found <= moment
            assert {path.name for path in folder.iterdir()} == FILES
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 1
    return "works: the folder holds the old model or the new one"


FILES = {"README.md", "config.json", "model.safetensors"}

attempt("use", "no space left while saving")(lambda folder: run("on_a_full_disk.py", folder))


# Objects between the positions of the grid


def vanishing(side: int) -> str:
    """The share of squares, at all places of 473 px, that no position of a grid sees."""
    line = torch.zeros(473 - side + 1, 1, 1, 473)
    for place, one in enumerate(line):
        one[..., place : place + side] = 1
    # A square shows where its rows and its columns do.
    seen = nearest(line, (1, 60)).flatten(1).any(dim=1).float().mean().item() ** 2
    squares = line[::80, None, 0].mT * line[None, ::80, 0]
    widened = widen_small(squares, (60, 60))
    assert nearest(widened, (60, 60)).flatten(2).any(dim=2).all()
    return f"works: {1 - seen:.0%} of them would fall between the positions, none does"


for pixels_wide in (1, 2, 4, 6, 7, 8):
    attempt("mask", f"squares of {pixels_wide} px at all places of 473 px, on a grid of 60 × 60")(
        lambda _, side=pixels_wide: vanishing(side)
    )
