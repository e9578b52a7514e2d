"""Consistency: with a perfect net on any path its loss is zero, and its teacher solves the true ODE."""

from typing import Any

import pytest
import torch
from support.oracle import Mixture
from support.small import FACTS, batch, family, recipe, shaken
from torch import Tensor, nn

from genflow import build
from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.consistency import Consistency
from genflow.families.gaussian import Gaussian
from genflow.maths.paths import StraightPath
from genflow.maths.rng import BatchRng, SampleRng
from genflow.maths.samplers import SAMPLERS
from genflow.recipe.schema import parse
from genflow.specs import DataSpec

LINE = DataSpec((1, 1, 1), levels=None)
GREY = FACTS["grey"]
SOURCES: list[dict[str, Any]] = [
    {"kind": "flow_matching"},
    *({"kind": "ddpm", "predict": p, "schedule": s} for p in ("eps", "x", "v") for s in ("linear", "cosine")),
]


class Perfect(nn.Module):
    """The optimal net of a source for a mixture; it converts the net's time back to the path's time."""

    def __init__(self, mixture: Mixture, source: dict[str, Any]) -> None:
        super().__init__()
        self.mixture, self.source = mixture, source
        self.view: tuple[Gaussian, ...] = ()  # a tuple, so that it is no submodule

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        path, kind = self.view[0].path, self.view[0].predict
        rows = []
        for row, clock in zip(x.double(), t.double().tolist(), strict=True):
            at = clock / 1000 if self.source["kind"] == "flow_matching" else clock / 1000 + 1 / path.T  # type: ignore[attr-defined]
            rows.append(self.mixture.predict(kind, row[None], path.alpha(at), path.sigma(at)))
        return torch.cat(rows).double()


def perfect(mixture: Mixture, source: dict[str, Any], **options: Any) -> Consistency:
    net = Perfect(mixture, source)
    made = Consistency({"net": net}, LINE, source=source, **options)
    net.view = made._view
    return made


def loss(model: Consistency, x: Tensor) -> float:
    label = torch.zeros(len(x), dtype=torch.long)
    return float(model.loss("net", Batch(x, label), BatchRng(0, "loss/net", 0))[0])


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: "-".join(s.values()))
def test_a_perfect_net_of_any_source_agrees_with_itself(source: dict[str, Any]) -> None:
    """If all data is one point, f(y, u) is that point everywhere and the loss is zero; on other data it is not."""
    x = torch.full((16, 1, 1, 1), 0.5)
    model = perfect(Mixture([1.0], [[0.5]], 1e-4), source)
    assert loss(model, x) == pytest.approx(0, abs=5e-3)
    assert loss(model, x + 0.3) > 0.02
    rng = SampleRng(range(4), "sample")
    for steps in (1, 2, 4):
        drawn = model.sample(rng.normal((4, 1, 1, 1)), torch.zeros(4, dtype=torch.long), rng, steps=steps)
        torch.testing.assert_close(drawn.x, torch.full((4, 1, 1, 1), 0.5).to(drawn.x), rtol=0, atol=2e-2)


def test_the_loss_of_points_is_smaller_at_the_mean_than_at_the_median() -> None:
    """If three rows in ten are 1 and the others 0, and every link ends at the data, 0.3 has a smaller loss than 0."""
    x = (torch.arange(1000) % 10 < 3).float()[:, None, None, None]
    mean, median = (perfect(Mixture([1.0], [[at]], 1e-4), SOURCES[0], least=0.5) for at in (0.3, 0.0))
    assert loss(mean, x) < loss(median, x)


def test_the_teacher_solves_its_ode() -> None:
    """Its midpoint step equals the solver's; from u to the next time of the chain it maps quantiles to quantiles."""
    mixture = Mixture([0.6, 0.4], [[0.8], [-0.6]], 0.5)
    model = perfect(mixture, SOURCES[0], mode="distill")
    model._teacher = model._view
    u = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    r = model.next(u)
    y = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)[:, None, None, None]
    got = model._teach(y, u, r, torch.zeros(3, dtype=torch.long))
    denoise = mixture.denoiser(StraightPath())
    for row in range(3):
        a, b, at = float(u[row]), float(r[row]), y[row : row + 1]
        step = SAMPLERS["midpoint"].run(denoise, StraightPath(), at, [a, b], BatchRng(0, "", 0))
        torch.testing.assert_close(got[row : row + 1], step, rtol=0, atol=1e-6)
        truth = mixture.quantile(mixture.cdf(at.flatten(1), a), b).reshape_as(step)
        torch.testing.assert_close(got[row : row + 1], truth, rtol=0, atol=0.06)


@pytest.mark.parametrize("mode", ["tune", "distill"])
def test_the_chain_reaches_the_data_in_few_links(mode: str) -> None:
    """Every link is at least `least` long, the last one ends at exactly 0, and links get shorter during training."""
    model = perfect(Mixture([1.0], [[0.0]], 1.0), SOURCES[0], mode=mode)
    counts = []
    for position in (0.0, 1.0):
        model.prepare(position)
        u, count = torch.tensor([0.98]), 0
        while u > 0:
            r = model.next(u)
            assert float(u - r) >= model.least - 1e-6
            u, count = r, count + 1
        counts.append(count)
    assert counts[0] <= counts[1] <= 20
    assert mode == "distill" or counts[0] < counts[1]


def test_the_teacher_is_not_part_of_the_run() -> None:
    """None of its weights and buffers is saved or trained, and a run loads and samples without it."""
    source = shaken(family("flow_matching", GREY))
    chosen = recipe("consistency", GREY, family={"mode": "distill", "guidance": 2.0})
    model = build.family_of(chosen, GREY)
    before = set(model.state_dict())
    model.init_from(source)
    assert set(model.state_dict()) == before == set(source.state_dict())
    assert len(list(model.parameters())) == len(list(source.parameters()))
    value, _ = model.loss("net", batch(GREY), BatchRng(0, "loss/net", 0))
    value.backward()
    assert all(p.grad is None for p in source.parameters())
    fresh = build.family_of(chosen, GREY)
    fresh.load_state_dict(model.state_dict())
    rng = [SampleRng([1, 2], "sample") for _ in range(2)]
    label, drawn = torch.tensor([0, 1]), []
    for each, own in zip((model, fresh), rng, strict=True):
        drawn.append(each.sample(own.normal((2, 1, 8, 8)), label, own).x)
    assert torch.equal(*drawn)


def test_a_source_that_does_not_fit_is_rejected() -> None:
    """No run, a VAE, data of another shape, a run of another family, a run without an ODE to distill."""
    document = parse({"family": {"kind": "consistency"}, "data": {"name": "digits"}})
    with pytest.raises(UsageError, match="none was named") as caught:
        build.resolve(document, GREY)
    assert caught.value.hint == "genflow train flow_matching --data digits, then add --init latest"
    with pytest.raises(UsageError, match="VAE has none"):
        build.resolve(document, GREY, recipe("vae", GREY))
    flow = recipe("flow_matching", GREY)
    with pytest.raises(UsageError, match="was trained on data of 3×8×8, and this is 1×8×8"):
        build.resolve(document, GREY, flow, FACTS["colour"])
    with pytest.raises(UsageError, match=r"this run of DDPM: family.source says Flow matching"):
        family("consistency", GREY).init_from(family("ddpm", GREY))
    tuned = recipe("consistency", GREY)
    assert build.resolve(document, GREY, tuned).family["source"] == flow.family  # tuning continues from a tuned run
    with pytest.raises(UsageError, match="no ODE to distill"):
        build.resolve(document.replace(family={"kind": "consistency", "mode": "distill"}), GREY, tuned)


def test_a_source_of_any_prediction_is_accepted() -> None:
    """family.source becomes the source's section, and f equals the source's denoiser."""
    for source in [*SOURCES, {"kind": "ddpm", "schedule": "edm"}]:
        options = {key: value for key, value in source.items() if key != "kind"}
        theirs = recipe(source["kind"], GREY, "mlp", family=options)
        chosen = build.resolve(parse({"family": {"kind": "consistency"}}), GREY, theirs)
        trained = shaken(build.family_of(theirs, GREY))
        model = build.family_of(chosen, GREY)
        assert isinstance(model, Consistency)
        model.init_from(trained)
        assert chosen.family["source"] == theirs.family
        noise, label = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
        rng = SampleRng([1, 2], "sample")
        if source.get("predict") == "eps":  # sampling starts slightly below the singular end
            continue
        expected = trained.sample(noise, label, rng, sampler="euler", steps=1).x.clamp(-1, 1)  # type: ignore[call-arg]
        drawn = model.sample(noise, label, rng, steps=1).x
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
