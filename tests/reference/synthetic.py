"""Deterministic synthetic weights and inputs for the reference cases.

Every tensor depends only on its own checkpoint key, so any implementation that maps the official
keys onto its own parameters can rebuild exactly the weights that the reference was run with.
NumPy's legacy RandomState is used because its stream is frozen across versions.
"""

import zlib

import numpy as np


def tensor_for(key: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """Weights for one official checkpoint key: float32 of `shape` (int64 0 for counters)."""
    rng = np.random.RandomState((zlib.crc32(key.encode()) + salt) % 2**32)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    n = rng.standard_normal(shape)
    if key.endswith("running_var"):
        out = np.exp(0.2 * n)
    elif key.endswith("running_mean"):
        out = 0.1 * n
    elif key in ("gram_merge.weight", "cls_merge.weight"):
        out = np.array([1.0, 0.0]).reshape(shape) + 0.2 * n
    elif key.endswith("bias"):
        out = 0.1 * n
    elif len(shape) == 1:  # norm scale
        out = 1.0 + 0.1 * n
    else:
        fan_in = int(np.prod(shape[1:]))
        out = n * np.sqrt(1.0 / fan_in)
    return out.astype(np.float32)


def episode(batch: int, shot: int, size: tuple[int, int], salt: int = 0):
    """Query (B,3,H,W), supports (B,K,3,H,W) float32 and masks (B,K,H,W) float32 in {0,1,255}.

    Smooth random images (so bilinear/nearest details matter) and one rectangle + one disc per mask,
    with a thin 255 'ignore' border on the rectangle.
    """
    rng = np.random.RandomState(1234 + salt)
    h, w = size

    def image():
        low = rng.standard_normal((3, h // 8 + 2, w // 8 + 2))
        img = low.repeat(8, 1).repeat(8, 2)[:, :h, :w]
        return (img + 0.3 * rng.standard_normal((3, h, w))).astype(np.float32)

    query = np.stack([image() for _ in range(batch)])
    supports = np.stack([np.stack([image() for _ in range(shot)]) for _ in range(batch)])
    masks = np.zeros((batch, shot, h, w), np.float32)
    yy, xx = np.mgrid[:h, :w]
    for b in range(batch):
        for k in range(shot):
            y0, x0 = rng.randint(0, h // 2), rng.randint(0, w // 2)
            y1, x1 = y0 + rng.randint(h // 6, h // 2), x0 + rng.randint(w // 6, w // 2)
            masks[b, k, max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = 255
            masks[b, k, y0:y1, x0:x1] = 1
            cy, cx, r = rng.randint(0, h), rng.randint(0, w), rng.randint(4, max(5, h // 5))
            masks[b, k][(yy - cy) ** 2 + (xx - cx) ** 2 <= r * r] = 1
    return query, supports, masks
