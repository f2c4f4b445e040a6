"""Images, masks and boxes in every common form."""

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses import FakeTensorMode

import hdmnet
from hdmnet.annotations import box_mask
from hdmnet.images import load_image, load_mask

pytestmark = pytest.mark.filterwarnings("error")

H, W = 6, 8
SIZE = (H, W)
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GRAY = np.ascontiguousarray(RGB[..., 0])
DEEP = np.random.default_rng(1).integers(0, 65536, SIZE, dtype=np.uint16)
DEEP_EXPECTED = torch.from_numpy(DEEP.astype(np.float32) / 65535).expand(3, -1, -1)
MASK = np.zeros(SIZE, dtype=np.uint8)
MASK[1:4, 2:7] = 1
ORIENTATIONS = {  # EXIF orientation: function from the upright array to the stored one
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, -1),
}


def chw(array: np.ndarray) -> torch.Tensor:
    """Turn (H, W, 3) uint8 into the expected (3, H, W) in [0, 1]."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


def gray3(array: np.ndarray) -> torch.Tensor:
    """Turn (H, W) uint8 into the expected (3, H, W) in [0, 1]."""
    return chw(np.stack([array] * 3, axis=-1))


def save(path: Path, array: np.ndarray, orientation: int | None = None, **options) -> Path:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.fromarray(np.ascontiguousarray(array)).save(path, **options)
    return path


def opened(path: Path, attribute: str = "mode") -> object:
    with Image.open(path) as image:
        return getattr(image, attribute)


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class TestLoadImage:
    @pytest.mark.parametrize("kind", [str, Path, Image.open])
    def test_file(self, tmp_path: Path, kind) -> None:
        loaded = load_image(kind(str(save(tmp_path / "image.png", RGB))))
        equal(loaded, chw(RGB))
        assert loaded.is_contiguous()

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_exif_orientation_of_a_jpeg(self, tmp_path: Path, orientation: int) -> None:
        upright = np.zeros((32, 48, 3), dtype=np.uint8)
        upright[:16, :24] = 200, 40, 90
        stored = ORIENTATIONS[orientation](upright)
        path = save(tmp_path / "image.jpg", stored, orientation, quality=95, subsampling=0)
        for source in (path, Image.open(path)):
            torch.testing.assert_close(load_image(source), chw(upright), rtol=0, atol=0.02)

    def test_exif_that_cannot_be_written_again(self, tmp_path: Path) -> None:
        tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2)
        tiff += struct.pack("<HHIi", 0x0100, 9, 1, -5)  # a negative width
        tiff += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<I", 0)
        Image.fromarray(RGB).save(tmp_path / "image.jpg", exif=b"Exif\0\0" + tiff, quality=95)
        assert load_image(tmp_path / "image.jpg").shape[-2:] == RGB.shape[1::-1]

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
    def test_colour_modes(self, mode: str) -> None:
        image = Image.fromarray(RGB).convert(mode)
        equal(load_image(image), chw(np.asarray(image.convert("RGB"))))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
    def test_gray_modes(self, mode: str) -> None:
        image = Image.fromarray(GRAY).convert(mode)
        equal(load_image(image), gray3(np.asarray(image.convert("L"))))

    def test_alpha_is_ignored(self) -> None:
        alpha = np.arange(H * W, dtype=np.uint8).reshape(H, W, 1)
        rgba = np.concatenate([RGB, alpha], axis=-1)
        for source in (rgba, Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1)):
            equal(load_image(source), chw(RGB))
        equal(load_image(Image.fromarray(np.dstack([GRAY, alpha]))), gray3(GRAY))

    @pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
    def test_palette_png(self, tmp_path: Path, transparency: int | bytes | None) -> None:
        palette = np.array([[10, 20, 30], [200, 100, 0], [5, 250, 125]], dtype=np.uint8)
        indices = np.arange(H * W, dtype=np.uint8).reshape(SIZE) % 3
        image = Image.fromarray(indices)
        image.putpalette(palette.tobytes())
        options = {} if transparency is None else {"transparency": transparency}
        image.save(tmp_path / "palette.png", **options)
        image = Image.open(tmp_path / "palette.png")
        for source in (tmp_path / "palette.png", image):
            equal(load_image(source), chw(palette[indices]))
        assert image.mode == "P"
        assert image.info.get("transparency") == transparency  # the caller's image is unchanged

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        path = tmp_path / "cmyk.jpg"
        Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK").save(path, quality=95)
        assert opened(path) == "CMYK"
        red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 16, 16)
        torch.testing.assert_close(load_image(path), red, rtol=0, atol=0.02)

    def test_16_bit_png(self, tmp_path: Path) -> None:
        path = save(tmp_path / "deep.png", DEEP)
        assert opened(path) == "I;16"
        equal(load_image(path), DEEP_EXPECTED)

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
    def test_16_bit_modes(self, mode: str) -> None:
        if mode == "I":
            image = Image.fromarray(DEEP.astype(np.int32))
        else:
            data = DEEP.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
            image = Image.frombytes(mode, (W, H), data)
        assert image.mode == mode
        equal(load_image(image), DEEP_EXPECTED)

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_16_bit_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        path = save(tmp_path / "deep.png", ORIENTATIONS[orientation](DEEP), orientation)
        equal(load_image(path), DEEP_EXPECTED)

    def test_first_frame_of_an_animated_gif(self, tmp_path: Path) -> None:
        colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
        first, *others = [Image.new("RGB", (W, H), colour) for colour in colours]
        first.save(tmp_path / "animated.gif", save_all=True, append_images=others)
        assert opened(tmp_path / "animated.gif", "n_frames") == 3
        equal(load_image(tmp_path / "animated.gif"), chw(np.asarray(first)))

    @pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2"])
    def test_array_dtypes(self, dtype: str) -> None:
        scale = 1 if dtype == "uint8" else 257  # 255 * 257 = 65535
        array = (RGB.astype(np.uint16) * scale).astype(dtype)
        torch.testing.assert_close(load_image(array), chw(RGB), rtol=0, atol=1e-7)
        assert load_image(np.full((2, 2, 3), 255 * scale, dtype)).min() == 1

    @pytest.mark.parametrize("shape", [(H, W), (H, W, 1)])
    def test_gray_array(self, shape: tuple[int, ...]) -> None:
        equal(load_image(GRAY.reshape(shape)), gray3(GRAY))

    @pytest.mark.parametrize(
        "view",
        [
            lambda a: a[::-1],
            lambda a: a[:, ::-1],
            lambda a: a[..., ::-1],  # OpenCV's BGR turned into RGB
            lambda a: a[::2, 1::3],
            lambda a: np.asfortranarray(a),
            lambda a: np.swapaxes(a, 0, 1),
            lambda a: np.broadcast_to(a[:1], a.shape),
        ],
    )
    def test_array_strides(self, view) -> None:
        equal(load_image(view(RGB)), chw(view(RGB)))
        mask = view(RGB > 99)[..., 0]
        equal(load_mask(mask, mask.shape), torch.from_numpy(mask.astype(np.uint8)))

    def test_read_only_array(self) -> None:
        image, mask = RGB.copy(), MASK.copy()
        image.flags.writeable = mask.flags.writeable = False
        equal(load_image(image), chw(RGB))
        equal(load_mask(mask, SIZE), torch.from_numpy(MASK))

    @pytest.mark.parametrize("channels", [1, 3, 4])
    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64]
    )
    def test_tensor(self, channels: int, dtype: torch.dtype) -> None:
        bits = torch.zeros(4, H, W)
        bits[0, 0], bits[1, 1], bits[2, 2] = 1, 1, 1
        full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
        loaded = load_image((bits * full).to(dtype)[:channels])
        equal(loaded, bits[:3] if channels > 1 else bits[:1].expand(3, -1, -1))
        assert loaded.is_contiguous()

    def test_gray_tensor_without_channels(self) -> None:
        equal(load_image(torch.from_numpy(GRAY)), gray3(GRAY))

    def test_tensor_that_requires_grad(self) -> None:
        equal(load_image(chw(RGB).requires_grad_()).detach(), chw(RGB))

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="older torch needs a real device")
    def test_tensor_stays_on_its_device(self) -> None:
        with FakeTensorMode():  # a fake GPU
            pixels = torch.zeros(3, H, W, dtype=torch.uint8, device="cuda")
            assert load_image(pixels).device == pixels.device

    def test_tensor_without_values(self) -> None:
        with pytest.raises(ValueError, match="on the meta device, where tensors hold no values"):
            load_image(torch.zeros(3, H, W, dtype=torch.uint8, device="meta"))

    @pytest.mark.parametrize("source", [RGB.copy(), chw(RGB), torch.from_numpy(RGB).movedim(-1, 0)])
    def test_shares_no_memory(self, source) -> None:
        before = source.copy() if isinstance(source, np.ndarray) else source.clone()
        load_image(source).fill_(0.5)
        assert (source == before).all()

    def test_small_overshoot_is_clamped(self) -> None:
        image = torch.tensor([-0.0009, 0.25, 1.0009]).view(1, 1, 3)
        equal(load_image(image), torch.tensor([0, 0.25, 1]).expand(3, 1, 3))

    @pytest.mark.parametrize(
        ("low", "high"),
        [(-0.0011, 1), (0, 1.0011), (-2.1, 2.6), (0, 255), (0, math.inf), (-math.inf, 0)],
    )
    def test_float_out_of_range(self, low: float, high: float) -> None:
        image = torch.full((3, H, W), 0.0)
        image[0, 0, 0], image[1, 1, 1] = low, high
        with pytest.raises(ValueError, match="; divide 0-255 values by 255") as caught:
            load_image(image)
        assert str(caught.value).startswith(f"image has values from {low:g} to {high:g}: float")

    def test_nan(self) -> None:
        image = chw(RGB)
        image[1, 2, 3] = math.nan
        with pytest.raises(ValueError, match="values from nan to nan: float tensors hold finite"):
            load_image(image)

    @pytest.mark.parametrize("shape", [(H, W, 3), (3, H, W), (H, W)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_float_array(self, shape: tuple[int, ...], dtype: type) -> None:
        with pytest.raises(TypeError, match=r"float\d\d array: .* uint8; pass floats as .* tensor"):
            load_image(np.zeros(shape, dtype))

    @pytest.mark.parametrize(
        "source",
        [
            RGB.astype(np.int64),
            RGB > 9,
            RGB.astype(np.complex64),
            torch.zeros(3, H, W, dtype=torch.int64),
            torch.zeros(3, H, W, dtype=torch.bool),
        ],
    )
    def test_other_dtypes(self, source) -> None:
        name = str(source.dtype).removeprefix("torch.")
        with pytest.raises(TypeError, match=rf"image has dtype torch\.{name}: expected uint8"):
            load_image(source)

    @pytest.mark.parametrize("source", [None, 3, b"image.png", [RGB], {"image": RGB}])
    def test_other_types(self, source) -> None:
        message = f"image is a {type(source).__name__}: expected one path, PIL image,"
        with pytest.raises(TypeError, match=message):
            load_image(source)

    def test_an_iterator(self) -> None:
        with pytest.raises(TypeError, match="make a list of it, or use predict_iter"):
            load_image(iter(["a.jpg"]))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (np.zeros((3, H, W), np.uint8), r"\(3, 6, 8\).* channels come first: use transpose"),
            (torch.zeros(H, W, 3), r"\(6, 8, 3\).* channels come last: use permute"),
            (np.zeros((H, W, 2), np.uint8), r"\(6, 8, 2\): expected \(H, W, C\) .* 1 or 3 or 4$"),
            (torch.zeros(2, H, W), r"\(2, 6, 8\): expected \(C, H, W\) .* 1 or 3 or 4$"),
            (np.zeros((1, H, W, 3), np.uint8), r"\(1, 6, 8, 3\): .* pass several as a list"),
            (torch.zeros(2, 3, H, W), r"\(2, 3, 6, 8\): .* pass several as a list"),
            (np.zeros(3, np.uint8), r"\(3,\): expected one \(H, W, C\) array$"),
            (torch.tensor(1.0), r"\(\): expected one \(C, H, W\) tensor$"),
            (np.zeros((0, W, 3), np.uint8), r"\(0, 8, 3\): expected at least one pixel"),
            (torch.zeros(3, H, 0), r"\(3, 6, 0\): expected at least one pixel"),
            (np.zeros((0, 0), np.uint8), r"\(0, 0\): expected at least one pixel"),
            (Image.new("RGB", (0, H)), r"\(6, 0, 3\): expected at least one pixel"),
            (Image.new("I", (0, H)), r"\(6, 0\): expected at least one pixel"),
        ],
    )
    def test_wrong_shapes(self, source, message: str) -> None:
        with pytest.raises(ValueError, match=f"image has shape {message}"):
            load_image(source)

    @pytest.mark.parametrize("mode", ["F", "LAB", "La"])
    def test_modes_without_a_fixed_range(self, mode: str) -> None:
        with pytest.raises(ValueError, match=f"PIL mode '{mode}'.* convert it to 'RGB'"):
            load_image(Image.new(mode, (W, H)))

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_mode_i_out_of_range(self, value: int) -> None:
        array = np.full(SIZE, 7, np.int32)
        array[0, 0] = value
        low, high = min(7, value), max(7, value)
        with pytest.raises(ValueError, match=f"values from {low} to {high}: expected 16-bit"):
            load_image(Image.fromarray(array))


@pytest.mark.parametrize("load", [load_image, lambda path: load_mask(path, SIZE)])
class TestFiles:
    def test_missing(self, tmp_path: Path, load) -> None:
        with pytest.raises(FileNotFoundError, match=r"missing\.png"):
            load(tmp_path / "missing.png")

    def test_folder(self, tmp_path: Path, load) -> None:
        with pytest.raises(OSError, match=re.escape(tmp_path.name)):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not an image"])
    def test_not_an_image(self, tmp_path: Path, load, content: bytes) -> None:
        (tmp_path / "notes.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"notes\.png' is not an image that Pillow") as caught:
            load(tmp_path / "notes.png")
        assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
    def test_truncated(self, tmp_path: Path, load, suffix: str) -> None:
        noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = save(tmp_path / f"image.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"image\.{suffix}' ") as caught:
            load(path)
        assert caught.value.__cause__ is not None

    def test_truncated_pil_image(self, tmp_path: Path, load) -> None:
        path = save(tmp_path / "image.png", RGB)
        path.write_bytes(path.read_bytes()[:-60])
        with Image.open(path) as image, pytest.raises(ValueError, match="cannot be decoded"):
            load(image)

    def test_too_large(self, tmp_path: Path, load, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "image.png", RGB)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 4)
        with pytest.raises(ValueError, match=r"image\.png' cannot be decoded \(Image size"):
            load(path)


class TestLoadMask:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0, 1], [0, 1]),
            ([0, 255], [0, 1]),
            ([0, 1, 255], [0, 1, 255]),
            ([1, 255], [1, 255]),
            ([0], [0]),
            ([1], [1]),
            ([255], [1]),
        ],
    )
    @pytest.mark.parametrize(
        "dtype",
        ["uint8", "uint16", ">u2", "uint64", "int16", "int32", "int64", "float16", "float32"],
    )
    def test_values(self, values: list[int], expected: list[int], dtype: str) -> None:
        pick = np.arange(H * W).reshape(SIZE) % len(values)
        array = np.array(values)[pick].astype(dtype)
        result = torch.tensor(expected, dtype=torch.uint8)[torch.from_numpy(pick)]
        equal(load_mask(array, SIZE), result)
        equal(load_mask(array[..., None], SIZE), result)
        if dtype != ">u2":
            equal(load_mask(torch.from_numpy(array), SIZE), result)
            equal(load_mask(torch.from_numpy(array)[None], SIZE), result)
        if dtype in ("uint8", "uint16", "int32", "float32"):
            equal(load_mask(Image.fromarray(array), SIZE), result)

    def test_boolean(self) -> None:
        for source in (MASK > 0, torch.from_numpy(MASK > 0), Image.fromarray(MASK > 0)):
            equal(load_mask(source, SIZE), torch.from_numpy(MASK))

    def test_bfloat16(self) -> None:
        equal(load_mask(torch.from_numpy(MASK).bfloat16() * 255, SIZE), torch.from_numpy(MASK))

    @pytest.mark.parametrize("scale", [1, 255])
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I"])
    def test_modes(self, tmp_path: Path, mode: str, scale: int) -> None:
        image = Image.fromarray(MASK > 0 if mode == "1" else MASK * scale).convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(Image.fromarray(GRAY))
        path = tmp_path / "mask.tiff"
        image.save(path)
        assert opened(path) == mode
        for source in (image, path, str(path)):
            equal(load_mask(source, SIZE), torch.from_numpy(MASK))

    def test_16_bit_png(self, tmp_path: Path) -> None:
        path = save(tmp_path / "mask.png", MASK.astype(np.uint16) * 255)
        assert opened(path) == "I;16"
        equal(load_mask(path, SIZE), torch.from_numpy(MASK))

    @pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128])])
    def test_palette_counts_by_index(self, tmp_path: Path, transparency) -> None:
        indices = MASK.copy()
        indices[0, 0] = 255
        image = Image.fromarray(indices)
        image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 759 + [224, 224, 192])  # as in PASCAL VOC
        options = {} if transparency is None else {"transparency": transparency}
        image.save(tmp_path / "mask.png", **options)
        assert opened(tmp_path / "mask.png") == "P"
        equal(load_mask(tmp_path / "mask.png", SIZE), torch.from_numpy(indices))

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        path = save(tmp_path / "mask.png", ORIENTATIONS[orientation](MASK), orientation)
        equal(load_mask(path, SIZE), torch.from_numpy(MASK))

    def test_shares_no_memory(self) -> None:
        for source in (MASK.copy(), torch.from_numpy(MASK.copy()), torch.from_numpy(MASK).long()):
            load_mask(source, SIZE).fill_(7)
            assert (np.asarray(source) == MASK).all()

    @pytest.mark.parametrize(
        ("source", "listed"),
        [
            (np.array([[0, 2], [1, 0]]), "0, 1, 2"),
            (np.array([[0, -1], [1, 0]]), "-1, 0, 1"),
            (np.array([[0, 256], [257, 0]]), "0, 256, 257"),
            (np.array([[0, 65535], [0, 0]], np.uint16), "0, 65535"),
            (torch.tensor([[0, 0.5], [1, 0]]), "0, 0.5, 1"),
            (torch.tensor([[0, 0.5], [1, 0]]).bfloat16(), "0, 0.5, 1"),
            (torch.tensor([[math.nan, math.nan], [1, 0]]), "0, 1, nan"),
            (np.array([[0, math.inf], [1, 0]]), "0, 1, inf"),
            (torch.tensor([[0, 0.999999], [1, 0]]), "0, 0.999998987, 1"),
            (np.array([[0, 1], [254, 255]]), "0, 1, 254, 255"),
            (Image.fromarray(np.array([[0, 3], [3, 0]], np.uint8)), "0, 3"),
        ],
    )
    def test_other_values(self, source, listed: str) -> None:
        with pytest.raises(ValueError, match=f"mask has the values {re.escape(listed)}: expected"):
            load_mask(source, (2, 2))

    @pytest.mark.parametrize(("count", "listed"), [(8, "4, 5, 6, 7:"), (9, "4, 5, 6, 7, …:")])
    def test_lists_at_most_eight_values(self, count: int, listed: str) -> None:
        with pytest.raises(ValueError, match=f"has the values 0, 1, 2, 3, {listed} expected"):
            load_mask(np.arange(count)[None], (1, count))

    def test_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"mask '.*third\.png' has the values 0, 3"):
            load_mask(save(tmp_path / "third.png", MASK * 3), SIZE)

    def test_jpeg_is_refused(self, tmp_path: Path) -> None:
        noise = (GRAY > 128).astype(np.uint8) * 255
        with pytest.raises(ValueError, match=r"mask\.jpg' has the values .* JPEG compression"):
            load_mask(save(tmp_path / "mask.jpg", noise, quality=50), SIZE)

    def test_other_size(self) -> None:
        with pytest.raises(ValueError, match=r"mask is 6 x 8 but its image is 8 x 6 \(height x"):
            load_mask(MASK, (W, H))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr"])
    def test_colour_is_refused(self, mode: str) -> None:
        image = Image.fromarray(np.stack([MASK, MASK * 0, MASK * 0], axis=-1) * 255).convert(mode)
        with pytest.raises(ValueError, match=rf"mask has colours \(PIL mode '{mode}'\)"):
            load_mask(image, SIZE)

    def test_cmyk_is_not_grey(self) -> None:
        with pytest.raises(ValueError, match="mask has colours"):
            load_mask(Image.new("CMYK", (W, H)), SIZE)  # its channels are equal, but it is white

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (MASK[None], r"\(1, 6, 8\): .* C = 1; .* channels come first: use transpose"),
            (torch.from_numpy(MASK)[..., None], r"\(6, 8, 1\): .* channels come last: use permute"),
            (RGB, r"\(6, 8, 3\): expected \(H, W, C\) array, C = 1$"),
            (np.zeros((2, H, W, 1)), r"\(2, 6, 8, 1\): .* pass several as a list"),
            (np.zeros((0, 0)), r"\(0, 0\): expected at least one pixel"),
        ],
    )
    def test_wrong_shapes(self, source, message: str) -> None:
        with pytest.raises(ValueError, match=f"mask has shape {message}"):
            load_mask(source, SIZE)

    @pytest.mark.parametrize("source", [None, [[0, 1]], (0, 0, 4, 4)])
    def test_other_types(self, source) -> None:
        message = f"mask is a {type(source).__name__}: expected one path, PIL image,"
        with pytest.raises(TypeError, match=message):
            load_mask(source, SIZE)

    def test_complex(self) -> None:
        with pytest.raises(TypeError, match=r"mask has dtype torch\.complex64"):
            load_mask(MASK.astype(np.complex64), SIZE)


class TestLabelMaps:
    MAP = np.array([[0, 8, 8], [12, 255, 0]], np.uint8)
    CAT = torch.tensor([[0, 1, 1], [0, 255, 0]], dtype=torch.uint8)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "int64"])
    def test_picks_a_class(self, dtype: str) -> None:
        values = self.MAP.astype(dtype)
        equal(load_mask(values, label=8), self.CAT)
        equal(load_mask(values, (2, 3), label=np.uint8(8)), self.CAT)
        if dtype != ">u2":
            equal(load_mask(torch.from_numpy(values)[None], label=8), self.CAT)

    @pytest.mark.parametrize("mode", ["P", "L", "I", "RGB"])
    def test_files(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(self.MAP)
        if mode == "P":
            image.putpalette([i * 7 % 256 for i in range(768)])
        image.convert(mode).save(tmp_path / "labels.tiff")
        equal(hdmnet.load_mask(tmp_path / "labels.tiff", label=8), self.CAT)

    def test_ignore(self) -> None:
        values = torch.tensor([[300, 255], [-1, 0]])
        equal(load_mask(values, label=300), torch.tensor([[1, 255], [0, 0]], dtype=torch.uint8))
        picked = load_mask(values, label=255, ignore=-1)
        equal(picked, torch.tensor([[0, 1], [255, 0]], dtype=torch.uint8))

    def test_the_result_reads_as_itself(self) -> None:
        for label in (8, 9):
            mask = load_mask(self.MAP, label=label)
            equal(load_mask(mask), mask)

    def test_a_label_that_is_not_there(self) -> None:
        equal(load_mask(self.MAP, label=9), torch.zeros(2, 3, dtype=torch.uint8))

    def test_any_size_without_a_label(self) -> None:
        equal(load_mask(MASK), load_mask(MASK, SIZE))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label": 255}, "label and ignore are both 255: give .* ignore=-1"),
            ({"label": 0, "ignore": 0}, "label and ignore are both 0"),
            ({"ignore": 0}, "ignore=0 was given without label"),
            ({"label": 8, "size": (3, 2)}, "mask is 2 x 3 but its image is 3 x 2"),
        ],
    )
    def test_wrong_options(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_mask(self.MAP, **options)

    @pytest.mark.parametrize("options", [{"label": "cat"}, {"label": 8.0}, {"ignore": None}])
    def test_labels_are_integers(self, options: dict) -> None:
        with pytest.raises(TypeError, match="must be the integer of a class in the label map, got"):
            load_mask(self.MAP, **{"label": 8, **options})

    @pytest.mark.parametrize("dtype", ["float32", "bool", "complex64"])
    def test_maps_hold_integers(self, dtype: str) -> None:
        with pytest.raises(TypeError, match=rf"mask has dtype torch\.{dtype}: a label map"):
            load_mask(self.MAP.astype(dtype), label=8)

    def test_colours_are_not_labels(self) -> None:
        with pytest.raises(ValueError, match="mask has colours"):
            load_mask(Image.fromarray(RGB), label=8)

    def test_the_error_about_values_says_how(self) -> None:
        with pytest.raises(ValueError, match=r"of a label map with hdmnet\.load_mask"):
            load_mask(self.MAP)


class TestBoxMask:
    @pytest.mark.parametrize(
        ("box", "rows", "columns"),
        [
            ((2, 1, 5, 4), (1, 4), (2, 5)),
            ((0, 0, W, H), (0, H), (0, W)),
            ((-3, -2, 2, 1), (0, 1), (0, 2)),
            ((6, 4, 99, 99), (4, H), (6, W)),
            ((-1e30, -1e30, 1e30, 1e30), (0, H), (0, W)),
            ((1.4, 0.6, 3.4, 2.6), (1, 3), (1, 3)),
            ((1.5, 0.5, 2.5, 1.5), (1, 2), (2, 3)),  # halves round up: a moved box keeps its size
            ((2.5, 1.5, 3.5, 2.5), (2, 3), (3, 4)),
            ((1.5, 0.5, 4.5, 3.5), (1, 4), (2, 5)),
            ((3.6, 1.1, 3.9, 1.2), (1, 2), (3, 4)),  # thinner than a pixel
            ((2.9, 2.9, 3.3, 3.3), (3, 4), (3, 4)),
            ((7.8, 5.8, 9, 9), (5, H), (7, W)),
            ((-4, -4, 0.1, 0.1), (0, 1), (0, 1)),
            ((np.nextafter(W, 0), np.nextafter(H, 0), W, H), (H - 1, H), (W - 1, W)),
        ],
    )
    def test_pixels(self, box, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        expected = torch.zeros(SIZE, dtype=torch.uint8)
        expected[slice(*rows), slice(*columns)] = 1
        equal(box_mask(box, SIZE), expected)
        assert expected.any()

    @pytest.mark.parametrize(
        "box",
        [
            [2, 1, 5, 4],
            np.array([2, 1, 5, 4], np.uint8),
            np.array([2, 1, 5, 4], np.float16),
            torch.tensor([2.0, 1, 5, 4]),
        ],
    )
    def test_sequences(self, box) -> None:
        equal(box_mask(box, SIZE), box_mask((2, 1, 5, 4), SIZE))

    def test_load_mask_accepts_it(self) -> None:
        box = box_mask((2, 1, 5, 4), SIZE)
        equal(load_mask(box, SIZE), box)

    @pytest.mark.parametrize(
        ("box", "message"),
        [
            ((1, 2, 3), "expected four finite numbers"),
            ((1, 2, 3, 4, 5), "expected four finite numbers"),
            ((), "expected four finite numbers"),
            ([(1, 2, 3, 4)], "expected four finite numbers"),
            ((0, 0, math.inf, 4), "expected four finite numbers"),
            ((0, math.nan, 3, 4), "expected four finite numbers"),
            ((5, 1, 2, 4), "x0 < x1 and y0 < y1; turn .* x \\+ width"),
            ((2, 4, 5, 1), "x0 < x1 and y0 < y1"),
            ((2, 1, 2, 4), "x0 < x1 and y0 < y1"),
            ((2, 1, 5, 1), "x0 < x1 and y0 < y1"),
            ((W, 0, W + 3, 3), "outside its image of 6 x 8"),
            ((0, H, 3, H + 3), "outside its image of 6 x 8"),
            ((-3, 0, 0, 3), "outside its image of 6 x 8"),
            ((0, -3, 3, 0), "outside its image of 6 x 8"),
        ],
    )
    def test_wrong_boxes(self, box, message: str) -> None:
        with pytest.raises(ValueError, match=rf"box is {re.escape(repr(box))}.*{message}"):
            box_mask(box, SIZE)

    def test_swapped_size(self) -> None:
        image, box = Image.new("RGB", (8, 200)), (0, 150, 5, 190)
        assert box_mask(box, image.size[::-1]).sum() == 5 * 40
        with pytest.raises(ValueError, match=r"; is size swapped\? expected \(height, width\)$"):
            box_mask(box, image.size)
        with pytest.raises(ValueError, match=r"pixels of that image$"):
            box_mask((0, 201, 5, 210), image.size)

    @pytest.mark.parametrize("box", [None, "0145", (0, "1", 4, 5), (True,) * 4, {0, 1, 4, 5}])
    def test_not_numbers(self, box) -> None:
        with pytest.raises(TypeError, match="expected four numbers"):
            box_mask(box, SIZE)
