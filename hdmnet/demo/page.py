"""The page of the demo."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import gradio as gr

from hdmnet.demo.events import TOOLS, Events
from hdmnet.model import HDMNet

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
FIRST = "object"
"""Name of the class that is there at the start."""
LARGEST_FILE = "64mb"
ABOUT = """
# hdmnet

Show it a thing in a few pictures, and it marks that thing in others. Pictures stay in the memory of
the computer that runs this page, and are forgotten when you leave it.
"""


def launch(
    model: HDMNet, name: str, *, host: str = "127.0.0.1", port: int | None = None
) -> NoReturn:
    """Serve the demo until the process is interrupted or terminated.

    Args:
        model: The model, in eval mode.
        name: Its name for `from_pretrained`, which "Python" shows.
        host: Address to listen on. The default admits this machine only.
        port: Port to listen on. None: the first free one from 7860.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the uploads go
    with serving(model, name, host=host, port=port) as address:
        logger.info("open %s in a browser; Ctrl-C ends it", address)
        while True:
            time.sleep(3600)


@contextmanager
def serving(
    model: HDMNet, name: str, *, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serve the demo inside of a `with` block, which gets its address.

    Args:
        model: As for `launch`.
        name: As for `launch`.
        host: As for `launch`.
        port: As for `launch`.
    """
    # Gradio writes uploads to a folder, where they stay until they are read. This one is ours.
    with TemporaryDirectory(prefix="hdmnet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(Events(model, name))
        page.queue(default_concurrency_limit=8, max_size=64)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=LARGEST_FILE,
            css=(HERE / "style.css").read_text(),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


def build(events: Events) -> gr.Blocks:
    """Make the page."""
    with gr.Blocks(
        title="hdmnet", analytics_enabled=False, delete_cache=(60, 600), fill_width=True
    ) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(min_width=320):
                gr.Markdown("## 1. Show it")
                name = gr.Dropdown(
                    [FIRST],
                    value=FIRST,
                    allow_custom_value=True,
                    label="Class",
                    info="Type another name to add a class.",
                    elem_id="class",
                )
                add = _upload("Pictures that show it", "supports")
                picture = gr.Radio([], label="Picture", visible=False, elem_id="picture")
                tool = gr.Radio(
                    list(TOOLS),
                    value="Box",
                    label="Mark it",
                    info="Drag a box around it, paint it, or click on it and beside it.",
                    visible=False,
                    elem_id="tool",
                )
                brush = gr.Slider(1, 30, 8, step=1, label="Width of the brush, %", visible=False)
                canvas = gr.HTML(
                    {},
                    html_template='<canvas role="img" aria-label="The picture, to mark"></canvas>',
                    js_on_load=(HERE / "canvas.js").read_text(),
                    elem_classes="hdmnet-canvas",
                )
                negative = gr.Checkbox(
                    label="It is not in this picture",
                    info="What is marked is something else. Nothing is marked: all of it is.",
                    visible=False,
                    elem_id="negative",
                )
                with gr.Row(visible=False) as buttons:
                    clear = gr.Button("Clear", size="sm", min_width=80)
                    remove = gr.Button("Remove", size="sm", min_width=80)
                    mask = gr.UploadButton(
                        "Mask from a file",
                        file_types=["image"],
                        size="sm",
                        min_width=120,
                        elem_id="mask",
                    )
            with gr.Column(min_width=320):
                gr.Markdown("## 2. Look for it")
                search = _upload("Pictures to segment", "queries")
                listed = gr.Markdown(visible=False, elem_id="listed")
                twice = gr.Checkbox(
                    label="Look twice (self-support)",
                    info="The first answer becomes one more support. It takes twice the time.",
                    elem_id="twice",
                )
                with gr.Row():
                    segment = gr.Button("Segment", variant="primary", elem_id="segment")
                    forget = gr.Button("Remove these pictures", visible=False)
                gr.Markdown("## 3. See")
                threshold = gr.Slider(
                    0.05,
                    0.95,
                    0.5,
                    step=0.05,
                    label="A pixel shows it above this probability",
                    elem_id="threshold",
                )
                rule = gr.Checkbox(
                    True,
                    label="Absent objects by the model's own rule",
                    info="It lowers what looks unlike the class.",
                    elem_id="rule",
                )
                presence = gr.Slider(
                    0,
                    1,
                    0.5,
                    step=0.05,
                    label="Empty masks below this presence",
                    visible=False,
                    elem_id="presence",
                )
                answers = gr.HTML(elem_id="answers")
        with gr.Tab("Why"):
            gr.Markdown("What an answer rests on: correlations with the supports, and priors.")
            with gr.Row():
                asked = gr.Dropdown([], label="Picture")
                of_class = gr.Dropdown([], label="Class")
                why = gr.Button("Show", elem_id="explain")
            reasons = gr.HTML(elem_id="why")
        with gr.Tab("Rate the supports"):
            gr.Markdown("A wrong mask has a low agreement with the others.")
            rate = gr.Button("Rate", elem_id="rate")
            ratings = gr.Dataframe(
                headers=["class", "picture", "agreement"], interactive=False, elem_id="ratings"
            )
        with gr.Tab("Files"):
            with gr.Row():
                pack = gr.Button("Masks, COCO file and encoded classes", elem_id="pack")
                bake = gr.Button("ONNX graph of each class", elem_id="bake")
            files = gr.HTML(elem_id="files")
        with gr.Tab("Python"):
            copy = gr.Button("Write what I did as Python", elem_id="python")
            code = gr.Code(language="python", interactive=False, elem_id="code")

        now = [name, picture, tool, brush]
        shown = [name, picture, tool, brush, canvas, negative, buttons]
        choice = [threshold, rule, presence]
        results = [answers, asked, of_class]
        # The model works for one visitor at a time.
        heavy: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        # Only the picture shows that something is computed: all else would flicker.
        quiet: dict[str, Any] = {"show_progress_on": canvas}
        add.upload(events.add, [add, *now], [add, *shown])
        seen = [name.input, picture.input, tool.input, brush.release]
        gr.on(seen, events.show, now, shown, show_progress="hidden")
        canvas.select(events.mark, now, shown, **heavy, **quiet)
        clear.click(events.clear, now, shown, **quiet)
        remove.click(events.remove, now, shown, **quiet)
        mask.upload(events.take_mask, [mask, *now], shown, **quiet)
        negative.input(events.set_negative, [negative, *now], shown, **quiet)
        search.upload(events.add_queries, search, [search, listed, forget])
        forget.click(events.remove_queries, None, [listed, forget, *results])
        segment.click(events.segment, [twice, *choice], results, **heavy)
        moved = [threshold.release, rule.input, presence.release]
        gr.on(moved, events.choose, choice, [answers, presence])
        why.click(events.explain, [asked, of_class], reasons)
        rate.click(events.rate, None, ratings, **heavy)
        pack.click(events.pack, choice, files, **heavy)
        bake.click(events.bake, None, files, **heavy)
        copy.click(events.python, choice, code, **heavy)
        page.unload(events.leave)
    return page


def _upload(label: str, elem_id: str) -> gr.File:
    return gr.File(
        label=label, file_count="multiple", file_types=["image"], height=140, elem_id=elem_id
    )
