"""A backend for Label Studio: finished annotations become supports, and tasks get predictions.

    python -m hdmnet.integrations.label_studio supports --port 9090

Brush masks, polygons and rectangles show a class. A prediction has a brush mask of each class.
Needs the extra `label-studio`: in a clone, `pip install '.[label-studio]'`.
"""

try:
    from hdmnet.integrations.label_studio.backend import FewShotBackend
    from hdmnet.integrations.label_studio.server import BackendServer
except ImportError as error:
    raise ImportError(
        "hdmnet.integrations.label_studio needs: pip install 'hdmnet[label-studio]', or "
        "'.[label-studio]' in a clone"
    ) from error

__all__ = ["BackendServer", "FewShotBackend"]
