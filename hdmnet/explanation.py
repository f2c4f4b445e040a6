"""What an answer rests on: the correlation maps and the priors of a query, as arrays and drawn."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hdmnet._drawing import heat, tint, to_pil
from hdmnet.nn._resize import upsample
from hdmnet.output import Matches

_SIDE, _LEAST = 320, 200  # longer side of a panel, and its least width, in pixels
_GAP, _TEXT, _BAR = 12, 15, 8  # between panels, of the font, of a colour bar
_HEAT = 0.7  # opacity of a heat map over the query
_TINT = (255, 80, 0)


class Evidence(NamedTuple):
    """What `predict` keeps of a match for `explain`, on the CPU and on the network's own grids."""

    query: Tensor
    """(3, h, w) uint8, as the network saw it."""
    correlations: tuple[Tensor, ...]
    """(h_s, w_s) per stage, coarsest first."""
    priors: Tensor
    """(P, h, w)."""
    prior_names: tuple[str, ...]

    @classmethod
    def of(cls, match: Matches, query: Tensor) -> Self | None:
        """Copy the maps of one pair. A network without maps gives None.

        Args:
            match: N = 1.
            query: (3, h, w) uint8.
        """
        if not match.correlations or match.prior is None:
            return None
        return cls(
            query,
            # Copies: views would keep the scores of a whole batch in memory.
            tuple(level[0].float().cpu().clone() for level in match.correlations),
            match.prior[0].float().cpu().clone(),
            match.prior_names,
        )


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the answer to one query rests on, at the query's own size H × W.

    `Segmentation.explain` makes it.
    """

    correlations: tuple[Tensor, ...]
    """(H, W) float32 per stage of the cascade, coarsest first, in [-10, 10]."""
    priors: Tensor
    """(P, H, W) float32 in [-1, 1]: of f5 (or f3) and f4, the greatest cosine with any pixel of the
    object; of a model with `contrast`, also `contrast_prior`."""
    prior_names: tuple[str, ...]
    """The names of the P priors, such as ("f5", "f4") or ("f3", "f4", "contrast")."""
    mask: Tensor
    """(H, W) bool: the answer."""
    _evidence: Evidence

    @classmethod
    def of(cls, evidence: Evidence | None, mask: Tensor) -> Self:
        """Resize the maps of a match to the size of its mask.

        Raises:
            ValueError: If there is no evidence.
        """
        if evidence is None:
            raise ValueError(
                "there is nothing to explain: the answer is not from predict, or its network "
                "returns no correlations and priors. Override match_sets to return them"
            )

        def resized(maps: Tensor) -> Tensor:
            return upsample(maps[None], mask.shape, align_corners=True)[0]

        return cls(
            tuple(resized(level[None])[0] for level in evidence.correlations),
            resized(evidence.priors),
            evidence.prior_names,
            mask,
            evidence,
        )

    def picture(self) -> Image.Image:
        """Draw the answer, the priors and the correlation maps, each as a heat map over the query.

        The colours of a map go from its lowest to its highest value, which stand below it. Above
        it stands the size of the grid that the network computed it on.

        Example:
            >>> result.explain().picture().save("why.png")
        """
        height, width = (max(1, round(_SIDE * n / max(self.mask.shape))) for n in self.mask.shape)
        query = _fit(self._evidence.query / 255, height, width)
        grey = query.mean(dim=0, keepdim=True)
        mask = _fit(self.mask[None].float(), height, width)[0] > 0.5
        answer = _panel(tint(query, mask, _TINT, 0.5), "query and answer", None)

        def panel(title: str, values: Tensor) -> Image.Image:
            rows, columns = values.shape
            fitted = _fit(values[None], height, width)[0]
            pixels = torch.lerp(grey, heat(fitted), _HEAT)
            return _panel(pixels, f"{title}, {rows} x {columns}", values)

        found = self._evidence
        named = zip(found.prior_names, found.priors, strict=True)
        stages = len(found.correlations)
        first = [answer, *(panel(f"prior of {name}", values) for name, values in named)]
        second = [
            panel(f"correlation {i} of {stages}", values)
            for i, values in enumerate(found.correlations, 1)
        ]
        return _grid([first, second])


def _fit(maps: Tensor, height: int, width: int) -> Tensor:
    return upsample(maps[None], (height, width), align_corners=True)[0]


def _panel(pixels: Tensor, title: str, values: Tensor | None) -> Image.Image:
    """Draw an image (3, H, W) in [0, 1] with its title above and its colour bar below."""
    picture = to_pil(pixels)
    width, height = picture.size
    row = round(1.5 * _TEXT)
    panel = Image.new("RGB", (max(width, _LEAST), height + 2 * row), "white")
    width = panel.width
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(_TEXT)
    draw.text((0, row / 2), title, "black", font, anchor="lm")
    panel.paste(picture, (0, row))
    if values is not None:
        low, high = f"{values.min():.2f} ", f" {values.max():.2f}"
        left, right = (round(draw.textlength(text, font)) for text in (low, high))
        length, middle = max(1, width - left - right), row + height + row // 2
        bar = heat(torch.linspace(0, 1, length).expand(_BAR, length))
        panel.paste(to_pil(bar), (left, middle - _BAR // 2))
        draw.text((0, middle), low, "black", font, anchor="lm")
        draw.text((width, middle), high, "black", font, anchor="rm")
    return panel


def _grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Join panels of one size into a picture."""
    width, height = (n + _GAP for n in rows[0][0].size)
    size = (width * max(map(len, rows)) + _GAP, height * len(rows) + _GAP)
    picture = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            picture.paste(panel, (x * width + _GAP, y * height + _GAP))
    return picture
