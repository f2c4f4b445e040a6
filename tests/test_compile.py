"""One graph, for any batch, height and width."""

import pytest
import torch
from conftest import assert_same, assert_same_output, episode, make
from torch.export import Dim, export

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 14), reason="the compiler of older torch does not leave sizes free"
)


@pytest.fixture(autouse=True)
def _reset() -> None:
    torch.compiler.reset()


def test_one_graph_for_all_sizes() -> None:
    model = make(shots=3)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        # Numbers that are equal here would be taken to be equal everywhere.
        inputs = episode(2, 3, (64, 72))
        assert_same_output(compiled(*inputs), model(*inputs))
        inputs = episode(4, 3, (88, 80))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_same_output(compiled(*inputs), model(*inputs))


def test_queries_against_an_encoded_set() -> None:
    model = make().fused()
    compiled = torch.compile(model.scores, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        # Another number of shots is compiled once more; so are smaller sizes, by torch itself.
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


def test_the_default_backend() -> None:
    # It writes and compiles C++, which takes a minute: one small model of one size is enough.
    model = make(base_classes=0, heads=(2,))
    compiled = torch.compile(model, fullgraph=True)
    inputs = episode(2, 2)
    with torch.no_grad():
        assert_same_output(compiled(*inputs), model(*inputs))


@pytest.mark.parametrize("base_classes", [0, 3])
def test_export_with_dynamic_sizes(base_classes: int) -> None:
    model = make(base_classes=base_classes)
    # Below 64 the coarsest key grid has a single row, which the exporter makes a case of its own.
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
