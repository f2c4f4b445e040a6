"""Pictures and files as text of the page: so they are no files that others could ask for."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from hdmnet.demo.visit import Choice, Visit, alone


def image_url(picture: Image.Image) -> str:
    """Return a picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return _url("image/jpeg", buffer.getvalue())


def image(picture: Image.Image, alt: str) -> str:
    """Return a picture as HTML."""
    return f'<img alt="{escape(alt)}" src="{image_url(picture)}">'


def figures(visit: Visit, choice: Choice) -> str:
    """Draw the answers, each with the presence of each class and the share of its mask."""
    drawn = []
    for query, answer in visit.chosen(choice):
        parts = answer.without_overlaps()
        found = ", ".join(
            f"{name}: presence {answer[name].presence:.2f}, {parts[name].mask.float().mean():.0%}"
            for name in answer.names
        )
        overlay = alone(answer).overlay(query.image)
        caption = f"<b>{escape(query.name)}</b><br>{escape(found)}"
        drawn.append(
            f"<figure>{image(overlay, query.name)}<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="hdmnet-answers">{"".join(drawn)}</div>'


def links(files: dict[str, bytes]) -> str:
    """Return a link to each file, which the link itself holds."""
    found = (
        f'<a download="{escape(name)}" href="{_url("application/octet-stream", content)}">'
        f"{escape(name)} ({len(content) / 1e6:.2g} MB)</a>"
        for name, content in files.items()
    )
    return f'<div class="hdmnet-files">{"".join(found)}</div>'


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
