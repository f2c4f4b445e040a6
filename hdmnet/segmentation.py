"""The answer to one query: probability, mask, picture, file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hdmnet._files import write_whole
from hdmnet.images import ImageLike, load_image
from hdmnet.preprocess import resize_scores


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one query, on the CPU."""

    probability: Tensor
    """(H, W) float32 in [0, 1], at the query's own size."""

    @classmethod
    def from_scores(cls, scores: Tensor, size: Sequence[int]) -> Self:
        """Turn the scores of one query into probabilities at its own size.

        p = f / (b + f), with the scores b of the background and f of the object, clamped at 0.

        Args:
            scores: (1, 2, h, w) scores, background first.
            size: Height and width of the query.
        """
        b, f = resize_scores(scores.float(), size)[0].clamp(min=0)
        return cls((f / (b + f).clamp(min=1e-12)).cpu())

    @property
    def mask(self) -> Tensor:
        """(H, W) bool: probability > 0.5."""
        return self.probability > 0.5

    def overlay(
        self,
        image: ImageLike,
        *,
        color: tuple[int, int, int] = (255, 80, 0),
        opacity: float = 0.5,
    ) -> Image.Image:
        """Draw the mask on the query, tinted and outlined.

        Args:
            image: The query itself.
            color: R, G, B in 0 … 255.
            opacity: Opacity of the tint, in [0, 1].

        Raises:
            ValueError: If the image does not have the size of the mask.

        Example:
            >>> result.overlay("query.jpg").save("overlay.png")
        """
        pixels = load_image(image).cpu()
        if pixels.shape[-2:] != self.mask.shape:
            raise ValueError(
                f"the image is {tuple(pixels.shape[-2:])} (H, W) but the mask is "
                f"{tuple(self.mask.shape)}: pass the query itself"
            )
        mask = self.mask[None].float()
        width = 1 + max(mask.shape) // 400
        eroded = -F.max_pool2d(-mask, 2 * width + 1, stride=1, padding=width)
        weight = torch.where(mask > eroded, 1.0, opacity * mask)
        tint = torch.tensor(color).view(3, 1, 1) / 255
        blended = pixels + weight * (tint - pixels)
        return Image.fromarray((blended * 255).round().byte().permute(1, 2, 0).numpy())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a PNG file: 255 = object, 0 = background.

        Raises:
            ValueError: If `path` does not end in .png.

        Example:
            >>> result.save("mask.png")
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"masks are saved as PNG: give a path that ends in .png, not {path}")
        image = Image.fromarray(self.mask.byte().mul(255).numpy())
        write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
