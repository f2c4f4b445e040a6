"""Checks of constructor arguments and of image batches."""

from torch import Tensor


def check_type(name: str, value: object, kind: type | tuple[type, ...], meaning: str) -> None:
    """Raise TypeError unless `value` is of type `kind`, which the error calls `meaning`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {meaning}, got {value!r}")


def check_integer(name: str, value: int, least: int, most: int) -> None:
    """Refuse an integer out of its range: it would fail later, or take memory without bound.

    Raises:
        TypeError: If the value is not an int.
        ValueError: If the value is out of its range.
    """
    check_type(name, value, int, "an int")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_probabilities(**arguments: float) -> None:
    """Refuse values outside of [0, 1].

    Raises:
        TypeError: If a value is not a number.
        ValueError: If a value is out of its range.
    """
    for name, value in arguments.items():
        check_type(name, value, (int, float), "a probability")
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_images(name: str, images: Tensor, axes: str, smallest: int) -> None:
    """Refuse batches of another shape than `axes`, such as "B, 3, H, W", and too small images.

    Raises:
        ValueError: If the shape does not fit, or height or width is below `smallest`.
    """
    if images.ndim != axes.count(",") + 1 or images.shape[-3] != 3 or images.shape[1] < 1:
        least = " with K ≥ 1" if "K" in axes else ""
        raise ValueError(f"{name} must be ({axes}){least}, got {tuple(images.shape)}")
    if min(images.shape[-2:]) < smallest:
        raise ValueError(
            f"{name} images of {images.shape[-2]} × {images.shape[-1]} pixels are too small for "
            f"the coarsest stage: height and width must be at least {smallest}"
        )


def check_masks(masks: Tensor, supports: Tensor) -> None:
    """Raise ValueError unless masks (B, K, H, W) have the shape of supports (B, K, 3, H, W)."""
    if masks.shape != supports.shape[:2] + supports.shape[3:]:
        raise ValueError(
            f"masks must be (B, K, H, W) of the supports {tuple(supports.shape)}, got "
            f"{tuple(masks.shape)}"
        )


def check_episodes(query: Tensor, supports: Tensor) -> None:
    """Raise ValueError unless queries and supports hold the same number of episodes B."""
    if query.ndim == 4 and query.shape[0] != supports.shape[0]:
        raise ValueError(
            "query and supports must hold the same number of episodes B, got "
            f"{tuple(query.shape)} and {tuple(supports.shape)}"
        )
