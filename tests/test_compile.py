"""Compiled and exported graphs serve any batch size, height and width."""

import pytest
import torch
from conftest import assert_same, assert_same_output, episode, make
from torch.export import Dim, export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.__version__ < (2, 14), reason="older torch cannot compile for all sizes"
    ),
]


@pytest.fixture(autouse=True)
def _reset() -> None:
    torch.compiler.reset()


def test_one_graph_for_all_sizes() -> None:
    model = make(shots=3, heads=(2, 4))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        # These sizes differ, because the compiler assumes that equal sizes are always equal.
        inputs = episode(2, 3, (64, 72))
        assert_same_output(compiled(*inputs), model(*inputs))
        inputs = episode(4, 3, (88, 80))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_same_output(compiled(*inputs), model(*inputs))


def test_queries_against_an_encoded_set() -> None:
    model = make().fused()
    compiled = torch.compile(model.scores, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        # Another number of shots needs a new graph. Torch also recompiles for smaller sizes.
        for shots, size, stance in (
            (2, (72, 80), "default"),
            (2, (88, 96), "fail_on_recompile"),
            (3, (88, 96), "default"),
        ):
            query, supports, masks = episode(1, shots, size)
            encoded = model.encode(supports, masks)
            expected = model.scores(query, encoded)
            with torch.compiler.set_stance(stance):
                assert_same(compiled(query, encoded), expected)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224"])
def test_the_default_backend(backbone: str) -> None:
    # Compiling the C++ code takes a minute, so this tests small models at one size.
    model = make(backbone=backbone, base_classes=0, heads=(2,))
    compiled = torch.compile(model, fullgraph=True)
    inputs = episode(2, 2)
    with torch.no_grad():
        assert_same_output(compiled(*inputs), model(*inputs))


def test_export_with_dynamic_sizes() -> None:
    model = make()
    # Below 64 pixels the coarsest key grid has one row, a special case for the exporter.
    batch, height, width = Dim("batch", max=64), Dim("height", min=64), Dim("width", min=64)
    program = export(
        model,
        episode(2, 2, (64, 72)),
        dynamic_shapes={
            "query": {0: batch, 2: height, 3: width},
            "supports": {0: batch, 3: height, 4: width},
            "masks": {0: batch, 2: height, 3: width},
        },
    )
    exported = program.module()
    for size in ((64, 72), (101, 64), (72, 130)):
        inputs = episode(3, 2, size)
        assert_same_output(exported(*inputs), model(*inputs))
