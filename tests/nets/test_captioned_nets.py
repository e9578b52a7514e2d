"""What every net that reads the tokens of captions keeps: a row's bits in any batch, and one graph for a compiler."""

import pytest
import torch
from support.small import NETS, TEXT, captions, shaken
from torch import Tensor, nn

from genflow import nets
from genflow.nets.rows import make_equal
from genflow.specs import NetSpec

ROWS = 2
PORTS = NetSpec((2, 4, 4), (2, 4, 4), time=True, text=TEXT)


@pytest.fixture(params=["mmdit", "sd3"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A small net with weights in every layer."""
    torch.manual_seed(0)
    return shaken(nets.builder(request.param)(PORTS, 0, **{**NETS[request.param], "depth": 3}), 0.2).eval()


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 4, 4, generator=generator), torch.linspace(5, 990, rows)


def test_a_row_has_the_same_bits_in_every_batch_of_the_engine(net: nn.Module) -> None:
    """A row's bits do not depend on the other rows or on their number."""
    make_equal(net)
    x, t = inputs(3 * ROWS)
    text = captions(list(range(3 * ROWS)))
    with torch.no_grad():
        whole, alone = net(x, t, text), net(*(each[:ROWS] for each in (x, t, text)))
        first = torch.tensor([5] * ROWS)
        repeated = net(x[first], t[first], text[first])
    assert torch.equal(whole[:ROWS], alone)
    assert torch.equal(whole[5:6], repeated[:1])


def test_a_compiler_sees_one_graph(net: nn.Module) -> None:
    """`torch.compile(fullgraph=True)` finds no break, other captions are no other graph, and the answer is the same."""
    seen: list[object] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    x, t = inputs(4)
    compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=False)
    for numbers in ([1, 2, 3, 0], [4, 5, 0, 0]):
        assert torch.equal(compiled(x, t, captions(numbers)), net(x, t, captions(numbers)))
    assert len(seen) == 1
