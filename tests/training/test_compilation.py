"""What `train.compile` compiles: every net that a loss calls, in one graph, into a folder of the run's own."""

import os
from pathlib import Path

import pytest
import torch
from support.small import FACTS, batch, family
from torch import Tensor

from genflow import families
from genflow.maths.rng import BatchRng
from genflow.training import compilation

SLOW = pytest.mark.slow
# family, data, net, options, and how many graphs a step has: of each net, one for each way in which a loss calls it
CASES = [
    ("flow_matching", "grey", "unet", {}, 1),
    ("flow_matching", "grey", "dit", {}, 1),
    ("ddpm", "points", "mlp", {}, 1),
    ("vae", "grey", "conv", {}, 2),
    ("autoencoder", "grey", "autoencoder", {}, 2),
    ("gan", "grey", "fixup", {}, 5),
    ("normalizing_flow", "grey", "tarflow", {}, 1),
    pytest.param("vae", "grey", "conv", {"prior": "flow"}, 3, marks=SLOW),
    pytest.param("normalizing_flow", "points", "spline", {}, 1, marks=SLOW),
    pytest.param("autoencoder", "colour", "autoencoder_kl", {}, 2, marks=SLOW),
    pytest.param("flow_matching", "grey", "unet2d", {}, 1, marks=SLOW),
    pytest.param("meanflow", "grey", "unet", {}, 2, marks=SLOW),
    pytest.param("consistency", "grey", "unet", {}, 2, marks=SLOW),
]


@pytest.mark.parametrize(("kind", "data", "net", "options", "graphs"), CASES)
def test_a_loss_has_no_graph_break(kind: str, data: str, net: str, options: dict[str, object], graphs: int) -> None:
    """The nets of a loss are compiled, without a break, and again for no later step; the loss is the same."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    reset()
    counters.clear()
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    made = family(kind, FACTS[data], net, family=options).train()
    if families.family_class(kind).teacher == "required":
        made.init_from(family("flow_matching", FACTS[data], net))

    def losses(step: int) -> list[Tensor]:
        given = batch(FACTS[data], step, 8)
        return [made.loss(player, given, BatchRng(0, "loss", step))[0].detach() for player in made.players]

    expected = losses(0)
    for player in made.players:
        compilation.compile_nets(getattr(made, player), backend=backend)
    torch.testing.assert_close(losses(0), expected)
    losses(1)
    assert dict(counters["graph_break"]) == {}
    assert len(seen) == graphs


def test_a_run_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles into the run's folder, which is deleted after the run; a folder that the user names stays."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path))
    monkeypatch.delenv(compilation.CACHE, raising=False)
    with compilation.cache_of("run-1") as folder:
        assert Path(cache_dir()) == folder == tmp_path / "compiled" / "run-1"
        folder.mkdir(parents=True, exist_ok=True)
    assert compilation.CACHE not in os.environ
    compilation.forget("run-1")
    assert not folder.exists()
    monkeypatch.setenv(compilation.CACHE, str(tmp_path / "own"))
    with compilation.cache_of("run-2"):
        assert Path(cache_dir()) == tmp_path / "own"
