"""Hostile and unlucky input. Each attempt makes an input, uses it and describes the outcome."""

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
"""(kind, what the input is) → the attempt, which gets an empty folder."""


def attempt(kind: str, what: str) -> Callable[[Attempt], Attempt]:
    """Add an attempt to `ATTEMPTS`."""

    def add(function: Attempt) -> Attempt:
        ATTEMPTS[kind, what] = function
        return function

    return add


def photograph(size: tuple[int, int] = SIZE) -> Image.Image:
    """Make a small random picture, always the same."""
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(format: str, size: tuple[int, int] = SIZE, **options: object) -> bytes:
    """Return the content of an image file with this picture."""
    buffer = io.BytesIO()
    photograph(size).save(buffer, format, **options)
    return buffer.getvalue()


def segment(query: object, mask: object = None, support: object = None) -> str:
    """Predict with a very small model, and describe the mask."""
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
    """Add an attempt to segment an image file."""

    def use(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return segment(folder / name)

    attempt("image", what)(use)


def image(what: str, make_image: Callable[[], object]) -> None:
    """Add an attempt to segment an object in memory."""
    attempt("image", what)(lambda _: segment(make_image()))


def png(width: int, height: int) -> bytes:
    """Make a black one-bit PNG, which has few bytes at any size."""

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
    """Make a PNG with 8 MB of EXIF."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 8_000_000
    return encoded("PNG", exif=exif)


image_file("a PNG cut in half", encoded("PNG")[:4000])
image_file("a JPEG cut in half", encoded("JPEG")[:1500])
image_file("a file of 0 bytes", b"")
image_file("a web page", b"<!doctype html><title>Sign in</title>")
image_file("a PNG whose pixels are garbage", encoded("PNG")[:60] + b"\xff" * 500)
image_file("a PNG of 1 × 1 pixels", encoded("PNG", (1, 1)))
image_file("a PNG of 3 × 20000 pixels", encoded("PNG", (3, 20000)))
image_file("a PNG of 20000 × 3 pixels", encoded("PNG", (20000, 3)))
image_file("a decompression bomb: 50000 × 50000 pixels in 304 kB", png(50_000, 50_000))
image_file("an EPS file, which is a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
image_file("a PNG with 8 MB of EXIF", huge_exif())
image_file("an animated GIF", encoded("GIF", save_all=True, append_images=[photograph()]))


@attempt("image", "a CMYK JPEG")
def _(folder: Path) -> str:
    photograph().convert("CMYK").save(folder / "cmyk.jpg")
    return segment(folder / "cmyk.jpg")


@attempt("image", "a 16-bit PNG")
def _(folder: Path) -> str:
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(folder / "16.png")
    return segment(folder / "16.png")


@attempt("image", "the path of a folder")
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
image("a batch of one image", lambda: torch.zeros(1, 3, *SIZE))
image("an array without pixels", lambda: np.zeros((0, 5, 3), np.uint8))
image("an int64 array", lambda: np.zeros((*SIZE, 3), np.int64))
image("a complex tensor", lambda: torch.zeros(3, *SIZE, dtype=torch.complex64))
image("a tensor without values (meta device)", lambda: torch.zeros(3, *SIZE, device="meta"))
image("None", lambda: None)
image("the bytes of a PNG", lambda: encoded("PNG"))


# Masks


def mask(what: str, make_mask: Callable[[], object]) -> None:
    """Add an attempt to use a mask."""
    attempt("mask", what)(lambda _: segment(photograph(), make_mask()))


def pixels(*values: float, dtype: type = np.uint8) -> np.ndarray:
    """Make a mask of 0 with some values side by side."""
    array = np.zeros(SIZE, dtype)
    array[20, 30 : 30 + len(values)] = values
    return array


mask("no foreground", lambda: np.zeros(SIZE, np.uint8))
mask("all foreground", lambda: np.ones(SIZE, np.uint8))
mask("one pixel, all others ignored", lambda: np.where(pixels(1) == 1, 1, 255).astype(np.uint8))
mask("one pixel", lambda: pixels(1))
mask("floats 0 and 1", lambda: pixels(1, 1, dtype=np.float32))
mask("floats 0, 0.5 and 1", lambda: pixels(0.5, 1, dtype=np.float32))
mask("NaN", lambda: pixels(np.nan, dtype=np.float32))
mask("labels out of range", lambda: pixels(1, 2, 7))
mask("negative labels", lambda: pixels(-1, dtype=np.int64))
mask("another size than its image", lambda: np.ones((60, 50), np.uint8))
mask("a colour image", lambda: np.zeros((*SIZE, 3), np.uint8))
mask("a grey photograph from a JPEG", lambda: Image.open(io.BytesIO(encoded("JPEG"))).convert("L"))
mask("a tensor without values (meta device)", lambda: torch.zeros(SIZE, device="meta"))


@attempt("mask", "two masks for one support")
def _(_: Path) -> str:
    return str(MODEL.predict(photograph(), [photograph()], [pixels(1), pixels(1)]))


@attempt("mask", "None as one of two masks")
def _(_: Path) -> str:
    return str(MODEL.predict(photograph(), [photograph(), photograph()], [pixels(1), None]))


# Weights


def weights(what: str, change: Callable[[bytes], bytes]) -> None:
    """Add an attempt to load a model whose weights were changed."""

    def use(folder: Path) -> str:
        MODEL.save_pretrained(folder / "model")
        file = folder / "model" / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        HDMNet.from_pretrained(folder / "model")
        return "works"

    attempt("weights", what)(use)


def reheaded(edit: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    """Return a function that changes only the header of a safetensors file."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return change


def retensored(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    """Return a function that changes the tensors of a safetensors file."""

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


weights("a file cut in half", lambda x: x[: len(x) // 2])
weights("a file of 0 bytes", lambda _: b"")
weights("a pickle", lambda _: pickle.dumps({"weight": 1}))
weights("a header that claims 2⁶³ bytes", lambda x: struct.pack("<Q", 2**63) + x[8:])
weights("a header that claims twice the file size", lambda x: struct.pack("<Q", 2 * len(x)) + x[8:])
weights("a header that is not valid JSON", lambda x: x[:8] + b"!" + x[9:])
weights("a shape larger than its data", reheaded(lambda h: h[NAME].update(shape=[10**6, 10**6])))
weights("a shape with a negative number", reheaded(lambda h: h[NAME].update(shape=[-1, 16, 1, 1])))
weights("offsets outside of the file", reheaded(lambda h: h[NAME].update(data_offsets=[0, 2**40])))
weights("two tensors at the same place of the file", reheaded(_overlap))
weights("a tensor that the header lists twice", _twice)
weights("an unknown dtype", reheaded(lambda h: h[NAME].update(dtype="F31")))
weights("surplus bytes at the end", lambda x: x + b"surplus")
weights("a missing tensor", retensored(lambda t: t.pop(NAME)))
weights("a surplus tensor", retensored(lambda t: t.update(extra=torch.zeros(1))))
weights("a tensor of another shape", retensored(lambda t: t.update({NAME: torch.zeros(2)})))
weights("int64 in place of float32", retensored(lambda t: t.update({NAME: t[NAME].long()})))
weights("float64 in place of float32", retensored(lambda t: t.update({NAME: t[NAME].double()})))
weights("a tensor of NaN", retensored(lambda t: t[NAME].fill_(torch.nan)))
weights("a tensor of infinity", retensored(lambda t: t[NAME].fill_(torch.inf)))


# Configurations


def config(what: str, change: Callable[[dict], str | bytes]) -> None:
    """Add an attempt to load a model whose configuration was changed."""

    def use(folder: Path) -> str:
        MODEL.save_pretrained(folder / "model")
        file = folder / "model" / "config.json"
        content = change(json.loads(file.read_text()))
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        HDMNet.from_pretrained(folder / "model")
        return "works"

    attempt("configuration", what)(use)


def setting(what: str, **values: object) -> None:
    """Add an attempt to load a model with other values in its configuration."""
    config(what, lambda x: json.dumps(x | values))


setting("an unknown key", colour="red")
setting("a newer version", config_version=99)
setting("a version that is not a number", config_version="1")
setting("a string in place of a number", dim="64")
setting("a fraction in place of an integer", shots=1.5)
setting("a number in place of a name", backbone=7)
setting("a list in place of a name", backbone=["resnet50"])
setting("an unknown backbone", backbone="resnet5000")
setting("a backbone from the Hub", backbone="hf-hub:someone/evil")
setting("a backbone from a local folder", backbone="local-dir:/tmp/evil")
setting("pretrained_backbone = true, which asks for a download", pretrained_backbone=True)
setting("a negative number of shots", shots=-1)
setting("dim = 10⁹", dim=10**9)
setting("dim = 16384, which gives 116 GB of parameters", dim=16384, heads=[1, 2])
setting("10⁶ base classes, which give 2 GB of parameters", base_classes=10**6)
setting("10³⁰ base classes", base_classes=10**30)
setting("40 stages", heads=[1] * 40)
setting("10⁶ stages", heads=[1] * 10**6)
setting("another backbone", backbone="vgg16", image_size=473)
setting("image_size = 10⁹", image_size=10**9)
setting("NaN as a probability", dropout=float("nan"))
setting("7 as a probability", feature_dropout=7)
setting("a string in place of a bool", frozen_norm="no")
config("a JSON list in place of an object", lambda _: "[]")
config("text that is not valid JSON", lambda _: "{")
config("bytes that are not valid UTF-8", lambda _: b"\xff\xfe")
config("100000 nested lists", lambda _: "[" * 100_000)
config("a file of 2 MB", lambda _: json.dumps({"backbone": "x" * 2**21}))
config("a number of 10000 digits", lambda _: '{"dim": ' + "9" * 10_000 + "}")


# Names and folders


def name(what: str, value: str) -> None:
    """Add an attempt to load a model by name."""

    def use(folder: Path) -> str:
        os.chdir(folder)
        HDMNet.from_pretrained(value, local_files_only=True, cache_dir=folder / "cache")
        return "works"

    attempt("name", what)(use)


name("a path traversal", "../../etc/passwd")
name("a path traversal in the name of a repository", "user/../../secret")
name("an absolute path", "/etc/passwd")
name("an empty name", "")
name("a name with a NUL character", "user/re\0po")
name("a URL", "https://example.com/model")
name("a name of 5000 characters", "u/" + "x" * 5000)


@attempt("name", "a symlink to a folder")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder / "model")
    (folder / "link").symlink_to(folder / "model")
    HDMNet.from_pretrained(folder / "link")
    return "works"


@attempt("name", "a symlink to a path that does not exist")
def _(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "none")
    HDMNet.from_pretrained(folder / "link")
    return "works"


@attempt("name", "a folder named model.safetensors in place of the file")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    HDMNet.from_pretrained(folder)
    return "works"


@attempt("name", "a config.json without permission to read it")
def _(folder: Path) -> str:
    MODEL.save_pretrained(folder / "model")
    (folder / "model" / "config.json").chmod(0)
    user = os.geteuid()
    folder.chmod(0o755)
    try:
        if user == 0:  # root may read every file: become another user
            os.chdir(folder)
            os.seteuid(65534)
        HDMNet.from_pretrained("model")
    finally:
        os.seteuid(user)
    return "works"


@attempt("name", "saving a model to the path of a file")
def _(folder: Path) -> str:
    (folder / "file").write_text("mine")
    try:
        MODEL.save_pretrained(folder / "file")
    finally:
        assert (folder / "file").read_text() == "mine"
    return "works"


# Support sets


def support_set(what: str, change: Callable[[bytes], bytes]) -> None:
    """Add an attempt to use a support set whose file was changed."""

    def use(folder: Path) -> str:
        path = folder / "set.safetensors"
        MODEL.encode_supports(photograph(), pixels(1, 1, 1)).save(path)
        path.write_bytes(change(path.read_bytes()))
        MODEL.predict(photograph(), SupportSet.load(path))
        return "works"

    attempt("support set", what)(use)


def edited(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[bytes], bytes]:
    """Return a function that changes the tensors of a support set, and keeps its fingerprint."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        edit(tensors)
        return save(tensors, about)

    return change


support_set("a file cut in half", lambda x: x[: len(x) // 2])
support_set("a file of 0 bytes", lambda _: b"")
support_set("a safetensors file that is not a support set", lambda _: save({"a": torch.zeros(1)}))
support_set("a set without prototypes", edited(lambda t: t.pop("prototypes")))
support_set("a set without one of its value tensors", edited(lambda t: t.pop("tokens.0.value")))
support_set("a set with a surplus tensor", edited(lambda t: t.update(extra=torch.zeros(1))))
support_set("prototypes of rank 1", edited(lambda t: t.update(prototypes=torch.zeros(3))))
support_set("prototypes of 7 channels", edited(lambda t: t.update(prototypes=torch.zeros(1, 1, 7))))
support_set("an integer tensor", edited(lambda t: t.update(gram=t["gram"].long())))
support_set("a tensor of NaN", edited(lambda t: t["gram"].fill_(torch.nan)))


@attempt("support set", "a set of another model")
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
    return "works: the same answers as in one thread"


def run(script: str, *arguments: object) -> str:
    """Run a script of this folder in a new process, which must end within 120 s."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


for method in ("fork", "spawn"):
    attempt("use", f"a pool of workers, started by {method} after the parent has predicted")(
        lambda _, method=method: run("in_a_pool.py", method)
    )


@attempt("use", "predictions during training")
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
    return "works: bit for bit the weights of training without predictions"


@attempt("use", "Ctrl-C at nine moments of a save")
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
                signal.setitimer(signal.ITIMER_REAL, moment * 4e-4)  # 0 sets no timer
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

attempt("use", "a full disk during a save")(lambda folder: run("on_a_full_disk.py", folder))


# Objects that the grid would miss


def vanishing(side: int) -> str:
    """Describe how many squares the grid would miss, and check that widening shows all of them."""
    line = torch.zeros(473 - side + 1, 1, 1, 473)
    for place, one in enumerate(line):
        one[..., place : place + side] = 1
    # The grid shows a square if it shows one of its rows and one of its columns.
    seen = nearest(line, (1, 60)).flatten(1).any(dim=1).float().mean().item() ** 2
    squares = line[::80, None, 0].mT * line[None, ::80, 0]
    widened = widen_small(squares, (60, 60))
    assert nearest(widened, (60, 60)).flatten(2).any(dim=2).all()
    return f"works: the grid shows all of them (without widening, it would miss {1 - seen:.0%})"


for pixels_wide in (1, 2, 4, 6, 7, 8):
    attempt("mask", f"squares of {pixels_wide} px anywhere in 473 × 473 px, on a grid of 60 × 60")(
        lambda _, side=pixels_wide: vanishing(side)
    )
