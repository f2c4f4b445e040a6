"""What the buttons of the demo do: inputs of the page in, updates of the page out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any, NamedTuple

import gradio as gr

from hdmnet.demo import _html
from hdmnet.demo.code import python_code
from hdmnet.demo.visit import Choice, Support, Visit
from hdmnet.model import HDMNet

TOOLS = {
    "Box": "box",
    "Paint": "paint",
    "Erase": "erase",
    "Point on it": "point",
    "Point beside it": "not_point",
}
PAINTS = ("Paint", "Erase")
KEPT = 60.0
"""Seconds that an upload stays after it was read. Gradio names its folder by its content, so
another visitor may be sending the same picture. An empty file of this age is a leftover."""
VISITS, QUERIES, SUPPORTS = 64, 50, 20
"""Most visits in memory, queries of a visit, and supports of a class."""


class Shown(NamedTuple):
    """What the part "Show it" of the page says."""

    name: str
    """The class."""
    picture: str | None
    """The name of the support on the canvas. None: there is none yet."""
    tool: str
    """One of `TOOLS`."""
    brush: float
    """Width of the brush, in % of the shorter side."""


class Events:
    """The functions behind the page, and the visits by session of the browser.

    The oldest visit is forgotten if there are too many.

    Args:
        model: The model, in eval mode.
        model_name: Its name for `from_pretrained`.
    """

    def __init__(self, model: HDMNet, model_name: str) -> None:
        self._model, self._model_name = model, model_name
        self._lock = Lock()
        self._visits: OrderedDict[str, Visit] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of visits in memory."""
        return len(self._visits)

    def leave(self, request: gr.Request) -> None:
        """Forget a visit: its page was closed."""
        with self._lock:
            self._visits.pop(str(request.session_hash), None)

    def show(self, request: gr.Request, *shown: Any) -> list[Any]:
        """Show another class, picture or tool."""
        with self._visit(request) as visit:
            return _view(visit, Shown(*shown))

    def add(self, request: gr.Request, files: list[str] | None, *shown: Any) -> list[Any]:
        """Add uploads to a class, and show the last."""
        page = Shown(*shown)
        with self._visit(request) as visit:
            room = SUPPORTS - len(visit.classes.get(page.name, []))
            added = _read(files, room, lambda path: visit.add_support(page.name, path))
            names = [support.name for support in added]
            return [None, *_view(visit, page._replace(picture=(names or [page.picture])[-1]))]

    def mark(self, request: gr.Request, event: gr.EventData, *shown: Any) -> list[Any]:
        """Paint a stroke on the picture, draw a box or set a point."""
        stroke = [(float(x), float(y)) for x, y in event.stroke]

        def change(visit: Visit, page: Shown, support: Support) -> None:
            if page.tool in PAINTS:
                support.paint(stroke, page.brush / 100, erase=page.tool == "Erase")
            else:
                support.annotate(stroke, TOOLS[page.tool], self._model)

        return self._change(request, shown, change)

    def clear(self, request: gr.Request, *shown: Any) -> list[Any]:
        """Remove what is marked in the picture."""
        return self._change(request, shown, lambda visit, page, support: support.clear())

    def remove(self, request: gr.Request, *shown: Any) -> list[Any]:
        """Remove the picture."""
        return self._change(
            request, shown, lambda visit, page, support: visit.remove(page.name, support)
        )

    def take_mask(self, request: gr.Request, file: str, *shown: Any) -> list[Any]:
        """Take the mask of the picture from an upload."""
        try:
            return self._change(
                request, shown, lambda visit, page, support: support.load_mask(file)
            )
        finally:
            discard(file)

    def set_negative(self, request: gr.Request, negative: bool, *shown: Any) -> list[Any]:
        """Say whether the picture shows something else."""

        def change(visit: Visit, page: Shown, support: Support) -> None:
            support.negative = negative

        return self._change(request, shown, change)

    def add_queries(self, request: gr.Request, files: list[str] | None) -> list[Any]:
        """Add uploads to the pictures to segment."""
        with self._visit(request) as visit:
            _read(files, QUERIES - len(visit.queries), visit.add_query)
            return [None, *_listed(visit)]

    def remove_queries(self, request: gr.Request) -> list[Any]:
        """Remove all pictures to segment, and their answers."""
        with self._visit(request) as visit:
            visit.queries, visit.answers = [], []
            return [*_listed(visit), *_results(visit, Choice())]

    def segment(
        self,
        request: gr.Request,
        twice: bool,
        *choice: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Segment the pictures, with self-support if `twice`."""
        with self._visit(request) as visit:
            for i, query in enumerate(visit.segment(self_support=twice), start=1):
                progress((i, len(visit.queries)), desc=query.name)
            return _results(visit, _choice(*choice))

    def choose(self, request: gr.Request, *choice: Any) -> list[Any]:
        """Draw the answers with other thresholds."""
        with self._visit(request) as visit:
            chosen = _choice(*choice)
            own = chosen.presence is not None
            return [_html.figures(visit, chosen), gr.update(visible=own)]

    def explain(self, request: gr.Request, query: str | None, name: str | None) -> str:
        """Draw what an answer rests on."""
        with self._visit(request) as visit:
            for picture, answer in zip(visit.queries, visit.answers, strict=False):
                if picture.name == query and name in answer.names:
                    return _html.image(answer[name].explain().picture(), f"Why {query}")
            raise ValueError("first segment a picture, and choose it here")

    def rate(self, request: gr.Request) -> list[list[Any]]:
        """Rate the supports of each class."""
        with self._visit(request) as visit:
            return [[name, picture, round(value, 2)] for name, picture, value in visit.rate()]

    def pack(self, request: gr.Request, *choice: Any) -> str:
        """Make the files of masks and classes."""
        with self._visit(request) as visit:
            files = visit.answer_files(_choice(*choice))
            return _html.links(files | visit.class_files())

    def bake(self, request: gr.Request) -> str:
        """Make the ONNX graph of each class."""
        with self._visit(request) as visit:
            return _html.links(visit.onnx_files())

    def python(self, request: gr.Request, *choice: Any) -> str:
        """Write what was done as Python."""
        with self._visit(request) as visit:
            visit.encode()  # its errors say what is missing
            return python_code(visit, self._model_name, _choice(*choice))

    @contextmanager
    def _visit(self, request: gr.Request) -> Iterator[Visit]:
        """Give the visit of a request to one function at a time, and show its errors."""
        with self._lock:
            visit = self._visits.setdefault(str(request.session_hash), Visit(self._model))
            self._visits.move_to_end(str(request.session_hash))
            if len(self._visits) > VISITS:
                self._visits.popitem(last=False)
        with visit.lock:
            try:
                yield visit
            except (ImportError, OSError, TypeError, ValueError) as error:
                raise gr.Error(str(error), print_exception=False) from error

    def _change(
        self,
        request: gr.Request,
        shown: tuple[Any, ...],
        change: Callable[[Visit, Shown, Support], None],
    ) -> list[Any]:
        """Change the support on the canvas."""
        page = Shown(*shown)
        with self._visit(request) as visit:
            support = _find(visit.classes.get(page.name, []), page.picture)
            if support is None:
                raise ValueError("first add a picture that shows it")
            try:
                change(visit, page, support)
                visit.changed(page.name)
            except ValueError as error:  # not raised: the canvas must be drawn again
                gr.Warning(str(error))
            return _view(visit, page)


def _view(visit: Visit, page: Shown) -> list[Any]:
    """Return updates of class, picture, tool, brush, canvas, negative and buttons."""
    supports = visit.classes.get(page.name, [])
    support = _find(supports, page.picture)
    there = gr.update(visible=support is not None)
    visit.revision += 1
    canvas: dict[str, Any] = {"revision": visit.revision}
    if support:
        drawn = _html.image_url(support.drawing())
        canvas |= {"image": drawn, "tool": TOOLS[page.tool], "brush": page.brush / 100}
    return [
        gr.update(choices=list(dict.fromkeys([*visit.classes, page.name])), value=page.name),
        gr.update(
            choices=[s.name for s in supports],
            value=support.name if support else None,
            visible=len(supports) > 1,
        ),
        there,
        gr.update(visible=support is not None and page.tool in PAINTS),
        canvas,
        gr.update(value=bool(support and support.negative), visible=support is not None),
        there,
    ]


def _find(supports: list[Support], name: str | None) -> Support | None:
    """Return the support of this name; if there is none, the last."""
    named = [support for support in supports if support.name == name] or supports
    return named[-1] if named else None


def _read(files: list[str] | None, room: int, read: Callable[[str], Any]) -> list[Any]:
    """Read uploads and delete them. What cannot be read gets a message."""
    found: list[Any] = []
    uploads = files or []
    try:
        for path in uploads:
            try:
                if len(found) < room:
                    found.append(read(path))
                else:
                    gr.Warning(f"{Path(path).name} is left out: there are too many pictures")
            except ValueError as error:
                gr.Warning(str(error))
    finally:
        discard(*uploads)
    return found


def discard(*uploads: str) -> None:
    """Delete uploads soon, see `KEPT`."""
    timer = Timer(KEPT, _delete, [[Path(upload) for upload in uploads]])
    timer.daemon = True  # the whole folder goes when the server ends
    timer.start()


def _delete(uploads: list[Path]) -> None:
    """Delete uploads that did not come again, and the empty files that Gradio leaves of others."""
    old = time.time() - KEPT
    for upload in uploads:
        with suppress(OSError):
            if upload.stat().st_mtime <= old:
                upload.unlink()
                upload.parent.rmdir()  # fails while it holds the same picture of another name
    for folder in {upload.parent.parent for upload in uploads}:
        for placeholder in folder.glob("tmp*"):
            with suppress(OSError):
                about = placeholder.stat()
                if about.st_size == 0 and about.st_mtime <= old:
                    placeholder.unlink()


def _choice(threshold: float, rule: bool, presence: float) -> Choice:
    return Choice(threshold, None if rule else presence)


def _listed(visit: Visit) -> list[Any]:
    """Return updates of the list of queries, and of the button that removes them."""
    names = ", ".join(f"`{query.name}`" for query in visit.queries)
    there = bool(visit.queries)
    return [gr.update(value=names, visible=there), gr.update(visible=there)]


def _results(visit: Visit, choice: Choice) -> list[Any]:
    """Return updates of the answers, and of the choices of "Why"."""
    queries = [query.name for query in visit.queries[: len(visit.answers)]]
    names = list(visit.answers[0].names) if visit.answers else []
    return [
        _html.figures(visit, choice),
        gr.update(choices=queries, value=queries[0] if queries else None),
        gr.update(choices=names, value=names[0] if names else None),
    ]
