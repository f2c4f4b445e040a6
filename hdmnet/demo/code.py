"""The visit as a Python program."""

from __future__ import annotations

from dataclasses import replace
from pprint import pformat
from typing import Any

from hdmnet.annotations import Box, Points
from hdmnet.demo.visit import Choice, Support, Visit
from hdmnet.model import HDMNet


def python_code(visit: Visit, model: str, choice: Choice) -> str:
    """Return a program that gives the answers of a visit.

    It reads the visitor's own files, and the masks that the ZIP file of the demo holds.

    Args:
        visit: The visit.
        model: The name of the model.
        choice: The thresholds.
    """
    painted = {id(support): path for path, support in visit.painted().items()}
    supports, masks, negatives = {}, {}, {}
    for name, shown in visit.classes.items():
        positive = [s for s in shown if not s.negative]
        supports[name] = [s.name for s in positive]
        masks[name] = [_mask(s, painted) for s in positive]
        others = [(s.name, _mask(s, painted)) for s in shown if s.negative]
        if others:
            negatives[name] = [pair if pair[1] else pair[0] for pair in others]
    queries = [query.name for query in visit.queries]
    kinds = {type(s.annotation) for shown in visit.classes.values() for s in shown}
    names = sorted(kind.__name__ for kind in {HDMNet} | kinds & {Box, Points})
    options = ", negatives=negatives" if negatives else ""
    if choice.presence is not None:
        options += f", presence_threshold={choice.presence:g}"
    if visit.self_support:
        options += ", self_support=True"
    lines = [
        f"from hdmnet import {', '.join(names)}",
        "",
        f'model = HDMNet.from_pretrained("{model}").fused()',
        _assign("supports", supports),
        _assign("masks", masks),
        *([_assign("negatives", negatives)] if negatives else []),
        _assign("queries", queries),
        f"answers = model.predict(queries, supports, masks{options})",
        "for query, answer in zip(queries, answers):",
    ]
    threshold = f"{choice.threshold:g}"
    if len(visit.classes) == 1:
        (name,) = visit.classes
        lines += [f"    mask = answer[{name!r}].probability > {threshold}  # (H, W) bool"]
    elif choice.threshold == 0.5:
        lines += ["    labels = answer.labels  # (H, W): 0 = background, i = answer.names[i - 1]"]
    else:
        lines += [
            "    best, number = answer.probability.max(dim=0)",
            f"    labels = (number + 1) * (best > {threshold})  # 0 = background, i = names[i - 1]",
        ]
    presence = "{name: round(answer[name].presence, 2) for name in answer.names}"
    lines += [f"    print(query, {presence})"]
    return "\n".join(lines) + "\n"


def _mask(support: Support, painted: dict[int, str]) -> Any:
    """Return what stands for the mask: a path, or an annotation in pixels of the file."""
    annotation = support.annotation
    across, down = (own / s for own, s in zip(support.own_size, support.image.size, strict=True))
    if isinstance(annotation, Box):
        a = annotation
        corners = (a.x0 * across, a.y0 * down, a.x1 * across, a.y1 * down)
        return Box(*(round(value, 2) for value in corners))
    if isinstance(annotation, Points):
        scaled = {
            kind: tuple(
                (round(x * across, 2), round(y * down, 2)) for x, y in getattr(annotation, kind)
            )
            for kind in ("positive", "negative")
        }
        return replace(annotation, **scaled)
    return painted.get(id(support))


def _assign(name: str, value: Any) -> str:
    text = pformat(value, width=90, sort_dicts=False)
    return f"{name} = " + text.replace("\n", "\n" + " " * (len(name) + 3))
