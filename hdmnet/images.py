"""Turn images and masks of many kinds into tensors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from hdmnet.annotations import Box, Points, Scribble
from hdmnet.nn._checks import check_type

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
"""A path, a PIL image, an array (H, W, C) or (H, W), or a tensor (C, H, W) or (H, W)."""

_FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}
_TOLERANCE = 1e-3  # interpolation and half precision leave [0, 1] by a little
_COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_LISTED_VALUES = 8
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""


def load_image(image: ImageLike, *, upright: bool = True) -> Tensor:
    """Turn an image into an RGB tensor, without normalisation by mean and std.

    An animated file gives its first frame. Grey becomes RGB, and alpha is ignored.

    Args:
        image: A path, a PIL image, an array (H, W, C) or (H, W), or a tensor (C, H, W) or (H, W).
            C is 1, 3 or 4: grey, RGB or RGBA. Arrays and tensors are uint8 in 0 to 255 or uint16 in
            0 to 65535; tensors may also be floating point in [0, 1]. PIL images of 16 bits span 0
            to 65535.
        upright: Turn files and PIL images by their EXIF orientation. False: leave the pixels as
            they are stored.

    Returns:
        (3, H, W) float32 in [0, 1], in new memory. A tensor stays on its device.

    Raises:
        TypeError: If the input is not an image, or has another dtype.
        ValueError: If a file cannot be decoded, a shape is wrong, or values are out of range.
        OSError: If a file cannot be opened, for example `FileNotFoundError`.

    Example:
        >>> load_image(np.zeros((480, 640, 3), np.uint8)).shape
        torch.Size([3, 480, 640])
    """
    name = _name("image", image)
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        raise TypeError(
            f"{name} is a {image.dtype} array: expected (H, W, C) uint8; "
            "pass floats as a (C, H, W) tensor with values in [0, 1]"
        )
    pixels = _read(image, name, _image_pixels, channels=(1, 3, 4), upright=upright)[:3]
    scale = _FULL_SCALE.get(pixels.dtype)
    if scale is None and not pixels.is_floating_point():
        raise TypeError(
            f"{name} has dtype {pixels.dtype}: expected uint8, or a float tensor in [0, 1]"
        )
    values = pixels.to(torch.float32)
    if scale is not None:
        values = values / scale
    else:
        low, high = (bound.item() for bound in values.aminmax())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # refuses NaN too
            raise ValueError(
                f"{name} has values from {low:g} to {high:g}: float tensors hold finite values "
                "in [0, 1]; divide 0-255 values by 255, and do not normalise by mean and std"
            )
    return values.clamp(0, 1).expand(3, -1, -1).contiguous()


def load_mask(
    mask: ImageLike,
    size: tuple[int, int] | None = None,
    *,
    label: int | None = None,
    ignore: int = 255,
) -> Tensor:
    """Turn a mask, or one class of a label map, into a tensor.

    The result is 0 = background, 1 = object, 255 = ignore.

    Without `label`, the values may be bool, {0, 1}, {0, 255} or {0, 1, 255}. If any pixel is 1,
    then 255 means ignore; otherwise it means object. A mask of zeros is empty.

    A label map, such as a PNG of PASCAL VOC, holds the id of a class at every pixel. Give the
    `label` to pick: otherwise, a map of only 0 and 255 = ignore would read as an object. If the map
    does not contain the label, the result is empty, and no pixel is ignored.

    Args:
        mask: A path, a PIL image, an array (H, W) or (H, W, 1), or a tensor (H, W) or (1, H, W), of
            any dtype except complex. Files and PIL images have one channel, or R = G = B. In a
            palette image, the indices count. Alpha is ignored, and EXIF orientation is applied.
        size: (H, W) of the mask's image. None: any size.
        label: The id of the class to pick from a label map, which holds integers.
        ignore: The value of a label map that means ignore.

    Returns:
        (H, W) uint8, in new memory. A tensor stays on its device.

    Raises:
        TypeError: If the input is not a mask or is complex, or if a label map or `label` does not
            hold integers.
        ValueError: If a file cannot be decoded, the shape or the size is wrong, there are other
            values, `label` equals `ignore`, or `ignore` is given without `label`.
        OSError: If a file cannot be opened, for example `FileNotFoundError`.

    Example:
        >>> load_mask(np.array([[0, 255], [255, 0]])).tolist()
        [[0, 1], [1, 0]]
        >>> load_mask(np.array([[0, 8], [255, 3]]), label=8).tolist()
        [[0, 1], [255, 0]]
    """
    name = _name("mask", mask)
    values = _read(mask, name, _mask_pixels, channels=(1,))[0]
    if size is not None and values.shape != (size[0], size[1]):
        height, width = size
        raise ValueError(
            f"{name} is {values.shape[0]} x {values.shape[1]} but its image is {height} x {width} "
            "(height x width): resize the mask to its image by nearest neighbour"
        )
    if label is not None:
        return _pick(values, name, label, ignore)
    if ignore != 255:
        raise ValueError(f"ignore={ignore} was given without label: it is a value of a label map")
    if values.is_complex():
        raise TypeError(f"{name} has dtype {values.dtype}: expected bool, integer or float")
    if not values.is_floating_point():
        values = values.long()  # torch has few operations on the wider unsigned integers
    is_one, is_full = values == 1, values == 255
    if not (is_one | is_full | (values == 0)).all():
        found = [f"{value:.9g}" for value in np.unique(values.tolist())]
        listed = ", ".join(found[:_LISTED_VALUES]) + (", …" if len(found) > _LISTED_VALUES else "")
        raise ValueError(
            f"{name} has the values {listed}: expected 0 and 1, 0 and 255 (object), or 0, 1 and "
            "255 (ignore); pick one class of a label map with hdmnet.load_mask(mask, label=...), "
            "and save masks without JPEG compression or smoothing"
        )
    return values.to(torch.uint8) if is_one.any() else is_full.to(torch.uint8)


def _pick(values: Tensor, name: str, label: int, ignore: int) -> Tensor:
    """Turn one class of a label map (H, W) into a mask."""
    for what, value in (("label", label), ("ignore", ignore)):
        check_type(what, value, (int, np.integer), "the integer of a class in the label map")
    if label == ignore:
        raise ValueError(
            f"label and ignore are both {label}: give the value that means ignore, or ignore=-1 if "
            "no value does"
        )
    if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name} has dtype {values.dtype}: a label map holds integers")
    values = values.long()
    mask = (values == label).to(torch.uint8)
    if mask.any():  # without a 1, the 255 would mean object
        mask[values == ignore] = 255
    return mask


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put `what` before the message of an error that says what is wrong with an input."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not what:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what}{error}") from error


def _name(role: str, source: ImageLike) -> str:
    return f"{role} {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else role


def _read(
    source: ImageLike,
    name: str,
    unpack: Callable[[Image.Image, str], NDArray[Any]],
    channels: tuple[int, ...],
    upright: bool = True,
) -> Tensor:
    """Turn any source into a tensor (C, H, W), with its dtype and values."""
    if isinstance(source, Image.Image):
        source = unpack(_decode(source, name, upright), name)
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            source = unpack(_decode(file, name, upright), name)

    if isinstance(source, np.ndarray):
        # torch refuses negative strides and foreign byte orders, and warns about read-only memory
        native = np.array(source, dtype=source.dtype.newbyteorder("="), order="C")
        tensor, axis, layout = torch.from_numpy(native), -1, "(H, W, C) array"
        mistake = "channels come first: use transpose(1, 2, 0)"
    elif isinstance(source, Tensor):
        tensor, axis, layout = source, 0, "(C, H, W) tensor"
        mistake = "channels come last: use permute(2, 0, 1)"
    else:
        raise TypeError(
            f"{name} is a {type(source).__name__}: expected one path, PIL image, "
            f"(H, W, C) array or (C, H, W) tensor{_hint(source)}"
        )

    shape = tuple(tensor.shape)
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, where tensors hold no values")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(axis)
    if tensor.ndim != 3:
        hint = "; pass several as a list" if tensor.ndim == 4 else ""
        raise ValueError(f"{name} has shape {shape}: expected one {layout}{hint}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {shape}: expected at least one pixel")
    if tensor.shape[axis] not in channels:
        counts = " or ".join(map(str, channels))
        hint = f"; it seems that its {mistake}" if tensor.shape[-1 - axis] in channels else ""
        raise ValueError(f"{name} has shape {shape}: expected {layout}, C = {counts}{hint}")
    return tensor.movedim(axis, 0)


def _hint(source: object) -> str:
    if isinstance(source, Iterator):
        return "; make a list of it, or use predict_iter"
    is_annotation = isinstance(source, Box | Points | Scribble)
    return "; model.pseudo_mask(image, annotation) makes a mask of it" if is_annotation else ""


def _decode(source: Image.Image | IO[bytes], name: str, upright: bool) -> Image.Image:
    try:
        image = source if isinstance(source, Image.Image) else open_image(source)
        image.load()
        # Not by ImageOps.exif_transpose: it writes the other tags again, and fails at odd ones.
        stored = image.getexif().get(ExifTags.Base.Orientation, 1)
        turn = _TURNS.get(stored) if upright else None
        return image.copy() if turn is None else image.transpose(turn)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image that Pillow can read: expected a file such as JPEG or PNG"
        ) from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"{name} cannot be decoded ({error}): expected a complete image file"
        ) from error


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image of any format except EPS, a program that Pillow hands to Ghostscript."""
    Image.init()
    return Image.open(file, formats=[name for name in Image.OPEN if name != "EPS"])


def _image_pixels(image: Image.Image, name: str) -> NDArray[Any]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image)  # Pillow's own conversion to RGB clips at 255
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 65535:
            raise ValueError(
                f"{name} has values from {pixels.min()} to {pixels.max()}: expected 16-bit values, "
                "0 to 65535"
            )
        return pixels.astype(np.uint16)
    if image.mode not in _COLOUR_MODES:
        raise ValueError(
            f"{name} has PIL mode {image.mode!r}: expected an 8-bit or 16-bit image; "
            "convert it to 'RGB' first"
        )
    image.info.pop("transparency", None)  # Pillow warns when it converts a palette with it
    return np.asarray(image.convert("RGB"))


def _mask_pixels(image: Image.Image, name: str) -> NDArray[Any]:
    bands = image.getbands()
    pixels = np.atleast_3d(np.asarray(image))
    if bands[-1] == "A":
        pixels = pixels[..., :-1]
    gray = pixels[..., :1]
    if pixels.shape[-1] > 1 and (bands[:3] != ("R", "G", "B") or (pixels != gray).any()):
        raise ValueError(
            f"{name} has colours (PIL mode {image.mode!r}): expected one channel, or R = G = B; "
            "turn the object's colour into 1 and the rest into 0"
        )
    return gray
