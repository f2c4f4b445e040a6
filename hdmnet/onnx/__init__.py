"""Run models with onnxruntime: export, int8, and a session with the model's `predict`.

Needs the extra `onnx`: in a clone, `pip install '.[onnx]'`.
"""

from hdmnet.onnx.export import export_onnx
from hdmnet.onnx.quantization import quantize
from hdmnet.onnx.session import Session

__all__ = ["Session", "export_onnx", "quantize"]
