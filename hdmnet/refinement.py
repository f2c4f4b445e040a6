"""Sharper borders: the guided filter lets the probabilities follow the edges of the photograph."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.preprocess import resize_image, resize_scores

GRID = 256
"""Longer side in pixels of the grid on which the filter is fitted."""
RADIUS = 6
"""Radius of the window, in pixels of this grid."""
SMOOTHNESS = 1e-3
"""The regularisation ε, in squares of colours in [0, 1]: edges much weaker than √ε are ignored."""


def refine(
    probability: Tensor, image: Tensor, *, radius: int = RADIUS, smoothness: float = SMOOTHNESS
) -> Tensor:
    """Make probabilities follow the edges of their image, with the guided filter.

    In each window, the probability is a linear function of the colour I:

        a = (Σ + ε 1)⁻¹ cov(I, p),   b = mean(p) - a · mean(I),   q = mean(a) · I + mean(b)

    with the covariance Σ of the colours in the window. The means of a and b are over all windows
    that hold the pixel. They are computed on a coarse grid and enlarged, as in the fast guided
    filter; I is the image at its own size.

    Args:
        probability: (H, W) in [0, 1].
        image: (3, H, W) RGB in [0, 1].
        radius: Radius of the window in pixels of the coarse grid.
        smoothness: ε.

    Returns:
        (H, W) in [0, 1].

    Source: He, Sun, Tang: Guided Image Filtering (ECCV 2010); He, Sun: Fast Guided Filter
    (arXiv 1505.00996).
    """
    size, image = probability.shape, image.detach().to(probability)
    shrink = min(1.0, GRID / max(size))
    grid = [max(round(length * shrink), 1) for length in size]
    guide = resize_image(image, grid)
    p = F.interpolate(probability[None, None], grid, mode="area")[0]

    def mean(x: Tensor) -> Tensor:
        for window in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
            padding = (window[0] // 2, window[1] // 2)
            x = F.avg_pool2d(x, window, 1, padding, count_include_pad=False)
        return x

    mean_guide, mean_p = mean(guide), mean(p)
    pairs = mean((guide[:, None] * guide).flatten(0, 1)).unflatten(0, (3, 3))
    covariance = pairs - mean_guide[:, None] * mean_guide
    with_p = mean(guide * p) - mean_guide * mean_p
    regular = covariance.permute(2, 3, 0, 1) + smoothness * torch.eye(3).to(guide)
    a = torch.linalg.solve(regular, with_p.permute(1, 2, 0)).permute(2, 0, 1)
    b = mean_p - (a * mean_guide).sum(dim=0, keepdim=True)
    a, b = resize_scores(mean(torch.cat([a, b]))[None], size)[0].split((3, 1))
    return ((a * image).sum(dim=0) + b[0]).clamp(0, 1)
