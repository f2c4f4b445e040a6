"""One graph, for any batch, height and width."""

import pytest
import torch
from conftest import assert_same, episode, make
from torch.export import Dim, export


# The default backend writes and compiles C++, which takes minutes: one small model is enough.
@pytest.mark.parametrize(
    ("backend", "options"),
    [("inductor", {"base_classes": 0, "heads": (2,)}), ("eager", {}), ("eager", {"shots": 2})],
)
def test_compile_full_graph(backend: str, options: dict[str, object]) -> None:
    torch.compiler.reset()
    model = make(**options)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch, size in ((2, (64, 64)), (3, (56, 80))):
            inputs = episode(batch, 2, size)
            for got, expected in zip(compiled(*inputs), model(*inputs), strict=True):
                if isinstance(expected, torch.Tensor):
                    assert_same(got, expected)


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
        expected = model(*inputs)
        for got, want in zip(exported(*inputs), expected, strict=True):
            if isinstance(want, torch.Tensor):
                assert_same(got, want)
