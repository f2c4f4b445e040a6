"""The exported graphs, run by onnxruntime, against PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, episode, make
from torch import Tensor

from hdmnet import HDMNet
from hdmnet.onnx import export_onnx

ort = pytest.importorskip("onnxruntime", reason="needs hdmnet[onnx]")
pytest.importorskip("onnxscript", reason="needs hdmnet[onnx]")

pytestmark = pytest.mark.slow  # the exports take a minute each


def run(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, feed)]


@pytest.fixture(scope="module", params=["any number of shots", "trained with 2 shots"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HDMNet, Path, Path]:
    trained = request.param == "trained with 2 shots"
    model = make(shots=2) if trained else make(base_classes=0)
    return model, *export_onnx(model, tmp_path_factory.mktemp("onnx") / "new")


@pytest.mark.parametrize(
    ("batch", "shots", "size"),
    # At 90, 105 and 120 pixels, nearest neighbours of ONNX differ from those of torch.
    [(1, 2, (64, 80)), (1, 1, (72, 72)), (3, 3, (101, 90)), (1, 2, (105, 120))],
)
def test_same_scores(
    exported: tuple[HDMNet, Path, Path], batch: int, shots: int, size: tuple[int, int]
) -> None:
    model, encoder, matcher = exported
    shots = 2 if model.config["shots"] == 2 else shots
    query, supports, masks = episode(batch, shots, size)
    supports, masks = supports[:1], masks[:1]
    with torch.no_grad():
        encoded = model.encode(supports, masks)
        expected = model.scores(query, encoded)
    from_graph = run(encoder, [supports, masks])
    assert_same(run(matcher, [query, *from_graph])[0], expected, 1e-4)
    # The graph also takes supports from PyTorch, which leaves out background positions.
    assert_same(run(matcher, [query, *encoded.named_tensors().values()])[0], expected, 1e-4)


def test_only_the_two_files_are_written(exported: tuple[HDMNet, Path, Path]) -> None:
    _, encoder, matcher = exported
    assert sorted(p.name for p in encoder.parent.iterdir()) == [matcher.name, encoder.name]
