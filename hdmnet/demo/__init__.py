"""The demo: a page on which people show a class and see masks. `hdmnet demo` starts it.

Needs the extra `demo`: in a clone, `pip install '.[demo]'`.
"""

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError(
        "the demo needs Gradio: pip install 'hdmnet[demo]', or '.[demo]' in a clone"
    ) from error

from hdmnet.demo.page import launch, serving

__all__ = ["launch", "serving"]
