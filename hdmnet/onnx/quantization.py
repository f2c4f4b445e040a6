"""Static int8 of exported graphs, calibrated on pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hdmnet._files import write_whole
from hdmnet.classes import Supports, as_list
from hdmnet.images import ImageLike, load_image
from hdmnet.onnx.export import CLASS, ENCODER, MATCHER
from hdmnet.onnx.session import Network, open_graph

Array: TypeAlias = NDArray[Any]
OPERATIONS = ("Conv", "Clip", "Relu", "Add")
LARGEST = 64
"""Largest absolute value of a weight. Processors without VNNI add two products in 16 bits: with 127
the sum of 255 · 127 and another product does not fit, and masks agree less.
"""
FINEST = {ENCODER: 8, MATCHER: 4, CLASS: 4}
"""Smallest stride of a grid in int8. Finer layers are cheap, and masks depend on them most.

Supports are encoded once for many queries, and their errors add up in all of them.
"""


def quantize(
    folder: str | Path,
    target: str | Path,
    pictures: Supports,
    supports: Supports = (),
    masks: Supports = (),
) -> tuple[Path, ...]:
    """Write int8 copies of the graphs that `export_onnx` wrote.

    A value x of a quantised layer becomes the integer round(x / scale) + zero. The scales come from
    the range of x on `pictures`, so they should look like the queries: a few dozen are enough.
    Convolutions on grids of stride 4 and coarser (8 for supports) become integer products, with
    biases corrected for the rounding of the weights. The attention, the priors and all other parts
    stay in float32. docs/speed.md has the time and the agreement of the masks.

    Args:
        folder: Folder with `segment.onnx`, or with `supports.onnx` and `query.onnx`.
        target: Folder to write to. It is created if it does not exist.
        pictures: One image or a sequence of images, as for `predict`.
        supports: Images of a class, to calibrate `supports.onnx`. Not needed for `segment.onnx`.
        masks: The mask of each support.

    Returns:
        The paths of the new graphs, which have the names of the old ones.

    Raises:
        ImportError: If the packages of `hdmnet[onnx]` are not installed.
        FileNotFoundError: If the folder has no graph.
        ValueError: If there is no picture, or no support for the graph that encodes them.

    Example:
        >>> quantize("fish", "fish-int8", ["photo_1.jpg", "photo_2.jpg"])
        >>> quantize("onnx", "onnx-int8", photos, ["a.jpg", "b.jpg"], ["a.png", "b.png"])
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "int8 needs: pip install 'hdmnet[onnx]', or '.[onnx]' in a clone"
        ) from error
    images = as_list(pictures)
    if not images:
        raise ValueError("pictures is empty: give images that look like the queries")
    folder, target = Path(folder), Path(target)
    one_class = folder / CLASS
    if one_class.is_file():
        if as_list(supports):
            raise ValueError(f"{one_class} holds its class: leave out supports and masks")
        feeds = {CLASS: [{"image": _to_array(image)} for image in images]}
    else:
        feeds = _feeds_of_pair(folder, images, supports, masks)
    target.mkdir(parents=True, exist_ok=True)
    for name, values in feeds.items():
        _quantize_graph(folder / name, target / name, values)
    return tuple(target / name for name in feeds)


def _to_array(image: ImageLike) -> Array:
    return load_image(image).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()


def _feeds_of_pair(
    folder: Path, pictures: Sequence[ImageLike], supports: Supports, masks: Supports
) -> dict[str, list[dict[str, Array]]]:
    """Run `predict`, and keep what the two graphs get."""
    if not as_list(supports):
        raise ValueError(f"supports is empty: {folder / ENCODER} is calibrated on them")
    encoder, matcher = (_Recorder(open_graph(folder / name)) for name in (ENCODER, MATCHER))
    network = Network(encoder, matcher)
    network.predict(list(pictures), network.encode_supports(supports, masks))
    return {ENCODER: encoder.feeds, MATCHER: matcher.feeds}


class _Recorder:
    """A session that keeps its inputs."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.feeds: list[dict[str, Array]] = []

    def run(self, names: None, feed: dict[str, Array]) -> list[Array]:
        self.feeds.append(feed)
        return self.session.run(names, feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def _quantize_graph(source: Path, target: Path, feeds: list[dict[str, Array]]) -> None:
    """Quantise the convolutions, and what lies between them."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    model = onnx.load(source)
    names = _nodes_to_quantize(model.graph, FINEST[target.name])
    if not names:
        raise ValueError(f"{source} has no float32 convolution to quantise: is it int8 already?")
    _correct_biases(model, names, feeds)
    write_whole(
        target,
        lambda temporary: quantize_static(
            model,
            temporary,
            Reader(),
            nodes_to_quantize=names,
            op_types_to_quantize=list(OPERATIONS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # to `LARGEST`
        ),
    )


def _nodes_to_quantize(graph: Any, finest: int) -> list[str]:
    """Name the convolutions of the model on coarse grids, and the nodes that only they lead to."""
    constants = {constant.name for constant in graph.initializer}
    quantised: set[str] = set()
    strides: dict[str, int] = {}
    names = []
    for node in graph.node:
        stride = max((strides.get(name, 1) for name in node.input), default=1)
        if node.op_type in ("Conv", "MaxPool", "AveragePool"):
            stride *= max(next((x.ints for x in node.attribute if x.name == "strides"), [1]))
        strides |= dict.fromkeys(node.output, stride)
        if node.op_type == "Conv":
            takes = node.input[1] in constants and stride >= finest
        else:
            takes = node.op_type in OPERATIONS and {*node.input} <= quantised | constants
        if takes:
            names.append(node.name)
            quantised.update(node.output)
    return names


def _correct_biases(model: Any, names: list[str], feeds: list[dict[str, Array]]) -> None:
    """Add to each bias what rounding the weights w to v takes from the mean output: Σ (w - v) E[x].

    Source: Nagel et al. (arXiv 1906.04721), section 4.2, with E[x] measured.
    """
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}
    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name in names and {*node.input[2:]} & constants.keys()
    ]
    means = _channel_means(model, {node.input[0] for node in convolutions}, feeds)
    replaced: set[str] = set()
    for node in convolutions:
        x, weight, bias = node.input
        replaced.add(bias)
        given = numpy_helper.to_array(constants[bias])
        w = numpy_helper.to_array(constants[weight])
        scale = np.abs(w).max((1, 2, 3), keepdims=True).clip(min=1e-12) / LARGEST
        lost = (w - np.round(w / scale) * scale).sum((2, 3))  # (out, in / groups)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        mean = means[x].reshape(groups, 1, -1)
        shift = (lost.reshape(groups, -1, mean.shape[-1]) * mean).sum(-1).ravel()
        node.input[2] = f"{node.name}.corrected_bias"  # its own: equal biases share a constant
        corrected = (given + shift).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(corrected, node.input[2]))
    used = {name for node in model.graph.node for name in node.input}
    for bias in replaced - used:
        model.graph.initializer.remove(constants[bias])


def _channel_means(
    model: Any, tensors: set[str], feeds: list[dict[str, Array]]
) -> dict[str, Array]:
    """Measure the mean of each channel of maps (B, C, H, W)."""
    import onnx
    import onnxruntime

    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    axes = onnx.numpy_helper.from_array(np.array([0, 2, 3]), "axes of means")
    measured.graph.initializer.append(axes)
    means = [f"mean of {tensor}" for tensor in tensors]
    for tensor, mean in zip(tensors, means, strict=True):
        node = onnx.helper.make_node("ReduceMean", [tensor, axes.name], [mean], keepdims=0)
        measured.graph.node.append(node)
        measured.graph.output.append(onnx.helper.make_tensor_value_info(mean, 1, [None]))
    session = onnxruntime.InferenceSession(
        measured.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    runs = [session.run(means, feed) for feed in feeds]
    return {t: np.mean(x, axis=0) for t, x in zip(tensors, zip(*runs, strict=True), strict=True)}
