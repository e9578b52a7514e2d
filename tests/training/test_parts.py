"""A step in parts, and layers that are computed again: the gradients are those of the whole step."""

from typing import Any

import pytest
import torch
from support.small import FACTS, TEXT, batch, family, recipe

from genflow import build, families
from genflow.errors import UsageError
from genflow.families.base import Family
from genflow.maths.rng import BatchRng
from genflow.recipe.compose import compose
from genflow.recipe.schema import parse
from genflow.training import activations, loop
from genflow.training.micro_batches import micro_batches
from genflow.training.session import Session

ROWS = 7
NETS = [("flow_matching", "dit", "grey"), ("flow_matching", "mmdit", "captioned"), ("flow_matching", "mlp", "points")]
CASES = [*((kind, families.family_class(kind).default_net, "grey") for kind in families.kinds()), *NETS]


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent: Muon and AdamW would amplify rounding."""

    def optimizers_of(module: torch.nn.Module, train: Any) -> dict[str, torch.optim.Optimizer]:
        made = torch.optim.SGD(module.parameters(), lr=0.01)
        made.param_groups[0]["base_lr"] = 0.01
        return {"sgd": made}

    monkeypatch.setattr(loop, "optimizers_of", optimizers_of)


def fitted(kind: str, net: str, data: str, **train: Any) -> tuple[Family, list[Any]]:
    """A family after three steps, and the numbers of each."""
    facts, numbers = FACTS[data], list[dict[str, float]]()
    settings = {"steps": 3, "batch": ROWS, "log_every": 1, "warmup": 1, "precision": "fp32", **train}
    chosen = recipe(kind, facts, net, train=settings)
    torch.manual_seed(3)
    made = build.family_of(chosen, facts)
    if families.family_class(kind).teacher == "required":
        made.init_from(family("flow_matching", facts, net))
    given = [batch(facts, step, ROWS) for step in range(3)]
    session = Session(log=numbers.append)
    loop.fit(made, lambda step: given[step], session, chosen.train, full_batches=lambda step: given[step % 3])
    return made, [[v for k, v in each.items() if k.startswith(("loss", "gradient"))] for each in numbers]


def apart(some: Family, other: Family) -> float:
    """The largest difference of two families' parameters."""
    pairs = zip(some.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.usefixtures("plain_descent")
@pytest.mark.parametrize(("kind", "net", "data"), CASES)
def test_parts_have_the_gradient_of_the_whole(kind: str, net: str, data: str) -> None:
    """Up to rounding, for every family and player, with uneven parts: the same losses, norms and weights."""
    whole, numbers = fitted(kind, net, data)
    parts, own = fitted(kind, net, data, accumulate=3)
    for ours, theirs in zip(own, numbers, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert apart(whole, parts) < 1e-5


@pytest.mark.parametrize(
    ("kind", "net", "data", "precision"),
    [*((*case, "fp32") for case in CASES), *((*case, "bf16") for case in NETS), ("gan", "fixup", "grey", "bf16")],
)
def test_layers_that_are_computed_again_have_the_same_bits(kind: str, net: str, data: str, precision: str) -> None:
    """Of all players, also with second derivatives (GAN), and with Muon and AdamW."""
    kept, numbers = fitted(kind, net, data, precision=precision)
    again, own = fitted(kind, net, data, precision=precision, checkpoint_activations=True)
    assert own == numbers
    assert apart(kept, again) == 0
    named = [getattr(again, player) for player in again.players]
    assert any("forward" in vars(module) for player in named for module in player.modules())


def test_dropout_draws_the_same_again() -> None:
    """The layers of a net with dropout restore the state of its generator."""
    facts = FACTS["grey"]
    chosen = recipe("flow_matching", facts).replace(net={"kind": "unet", "width": 16, "dropout": 0.5})
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        made = build.family_of(chosen, facts).train()
        if again:
            activations.checkpoint_layers(made.net)  # type: ignore[arg-type]
        torch.manual_seed(1)
        made.loss("net", batch(facts), BatchRng(0, "loss", 0))[0].backward()
        grads.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_layers_are_the_innermost() -> None:
    """Those of lists and sequences, and no single convolution, which keeps no more than its input."""
    for net in ("dit", "unet", "tarflow"):
        kind = "normalizing_flow" if net == "tarflow" else "flow_matching"
        made = family(kind, FACTS["grey"], net).net
        chosen = activations.layers(made)  # type: ignore[arg-type]
        assert chosen
        for layer in chosen:
            assert list(layer.children())
            assert not any(part in chosen for part in layer.modules() if part is not layer)


def test_a_part_has_the_draws_of_its_rows() -> None:
    """On every device that a family asks for, and in the order of its calls; captions and noise are cut, too."""
    facts = FACTS["captioned"]
    given = batch(facts, 0, ROWS)
    whole = BatchRng(0, "loss", 5)
    expected = [whole.normal((ROWS, 3)), whole.on("cpu").uniform((ROWS,)), whole.normal((ROWS, 2))]
    seen = []
    for part, rng, _ in micro_batches(given, BatchRng(0, "loss", 5), 3):
        rows = len(part)
        assert part.label.tokens.shape == (rows, TEXT.length, TEXT.tokens)  # type: ignore[union-attr]
        seen.append([rng.normal((rows, 3)), rng.on("cpu").uniform((rows,)), rng.normal((rows, 2))])
    for number, draws in enumerate(expected):
        assert torch.equal(torch.cat([own[number] for own in seen]), draws)


def test_parts_do_not_change_the_run() -> None:
    """A run is the same with more parts, or with layers that are computed again: it may resume on another GPU."""
    from genflow import runs

    facts = FACTS["grey"]
    plain, other = (
        build.resolve(compose("ddpm", {"train": train}), facts)
        for train in ({}, {"accumulate": 4, "checkpoint_activations": True})
    )
    assert runs.address(plain, facts) == runs.address(other, facts)
    with pytest.raises(UsageError, match=r"train.accumulate=9: a worker has 8 samples"):
        build.resolve(parse({"family": {"kind": "ddpm"}, "train": {"batch": 8, "accumulate": 9}}), facts)
