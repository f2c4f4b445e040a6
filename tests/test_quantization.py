"""Which nodes become int8, and errors. `test_onnx.py` runs the graphs."""

from pathlib import Path

import numpy as np
import pytest

from hdmnet.onnx import Session, quantize
from hdmnet.onnx.quantization import LARGEST, _correct_biases, _nodes_to_quantize

onnx = pytest.importorskip("onnx", reason="needs hdmnet[onnx]")
ort = pytest.importorskip("onnxruntime", reason="needs hdmnet[onnx]")
IMAGE = np.zeros((8, 8, 3), np.uint8)


def conv(name: str, x: str, stride: int) -> object:
    return onnx.helper.make_node("Conv", [x, "weight"], [name], name=name, strides=[stride] * 2)


def save(folder: Path, nodes: list[object]) -> object:
    """Write a graph from x to y as both graphs of a folder."""
    maps = [onnx.helper.make_tensor_value_info(n, 1, [1, 4, None, None]) for n in "xy"]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32)[..., None, None], "weight")
    graph = onnx.helper.make_graph(nodes, "graph", [maps[0]], [maps[1]], [weight])
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    for name in ("supports.onnx", "query.onnx"):
        onnx.save(model, folder / name)
    return graph


def test_only_coarse_convolutions_become_int8(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    graph = save(
        tmp_path,
        [
            conv("stem", "x", 2),
            make("Relu", ["stem"], ["fine"], name="fine"),
            make("MaxPool", ["fine"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
            conv("stride4", "pool", 1),
            conv("stride8", "stride4", 2),
            make("Relu", ["stride8"], ["relu"], name="relu"),
            conv("next", "relu", 1),
            make("Add", ["relu", "next"], ["add"], name="add"),
            make("Softmax", ["add"], ["softmax"], name="softmax"),
            make("Conv", ["softmax", "softmax"], ["free"], name="free weights"),
            make("Add", ["add", "softmax"], ["y"], name="mixed add"),
        ],
    )
    assert _nodes_to_quantize(graph, 8) == ["stride8", "relu", "next", "add"]
    assert _nodes_to_quantize(graph, 4) == ["stride4", "stride8", "relu", "next", "add"]


def test_a_shared_bias_is_corrected_for_each_convolution() -> None:
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in "uv"}
    bias = np.full(4, 0.5, np.float32)
    maps = [onnx.helper.make_tensor_value_info(n, 1, [1, 4, None, None]) for n in "xy"]
    nodes = [make("Conv", ["x", "u", "b"], ["a"], name="1"), make("Relu", ["a"], ["r"])]
    nodes.append(make("Conv", ["r", "v", "b"], ["y"], name="2"))
    constants = [tensor(value, name) for name, value in weights.items()] + [tensor(bias, "b")]
    graph = onnx.helper.make_graph(nodes, "graph", [maps[0]], [maps[1]], constants)
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    x = rng.random((1, 4, 5, 6)).astype(np.float32)
    relu = np.maximum(np.einsum("oi,bihw->bohw", weights["u"][..., 0, 0], x) + 0.5, 0)
    _correct_biases(model, ["1", "2"], [{"x": x}])
    assert "b" not in [c.name for c in model.graph.initializer]
    found = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    for node, values in ((model.graph.node[0], x), (model.graph.node[2], relu)):
        w = weights[node.input[1]][..., 0, 0]
        scale = np.abs(w).max(axis=1, keepdims=True) / LARGEST
        expected = bias + (w - np.round(w / scale) * scale) @ values.mean((0, 2, 3))
        np.testing.assert_allclose(found[node.input[2]], expected, atol=1e-6)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures is empty"):
        quantize(tmp_path, tmp_path / "int8", [])
    with pytest.raises(ValueError, match="supports is empty"):
        quantize(tmp_path, tmp_path / "int8", IMAGE)
    with pytest.raises(FileNotFoundError, match="write it with export_onnx"):
        Session(tmp_path)
    (tmp_path / "supports.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"onnxruntime cannot run .*supports\.onnx"):
        Session(tmp_path)
    class_graph = tmp_path / "class" / "segment.onnx"
    class_graph.parent.mkdir()
    save(tmp_path, [onnx.helper.make_node("Relu", ["x"], ["y"])])
    (tmp_path / "query.onnx").replace(class_graph)
    with pytest.raises(ValueError, match="no float32 convolution to quantise: is it int8"):
        quantize(class_graph.parent, tmp_path / "int8", IMAGE)
    with pytest.raises(ValueError, match="holds its class: leave out supports"):
        quantize(class_graph.parent, tmp_path / "int8", IMAGE, IMAGE, IMAGE)
    save(tmp_path, [conv("y", "x", 1)])
    with pytest.raises(ValueError, match="not of this version of hdmnet"):
        Session(tmp_path)
