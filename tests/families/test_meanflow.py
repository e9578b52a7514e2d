"""MeanFlow, with the perfect average velocity of a Gaussian, whose flow scales all points equally."""

from typing import Any

import pytest
import torch
from support.small import FACTS, batch, family, shaken
from torch import Tensor, nn

from genflow.errors import UsageError
from genflow.families import meanflow
from genflow.families.flow_matching import FlowMatching
from genflow.families.meanflow import MeanFlow
from genflow.maths.paths import over
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec

LINE = DataSpec((1, 1, 1), levels=None)
S = 0.4  # the data's standard deviation
ROWS = 64
NO_LABEL = torch.zeros(ROWS, dtype=torch.long)


def width(t: Tensor) -> Tensor:
    """The standard deviation of x_t; the flow maps x_t to x_r = x_t width(r)/width(t)."""
    return (((1 - t) * S) ** 2 + t**2).sqrt()


class Perfect(nn.Module):
    """u(x, r, t) = x (1 - width(r)/width(t)) / (t - r), and the velocity x width'(t)/width(t) where r = t."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor, r: Tensor) -> Tensor:
        t, r = t.double() / 1000, r.double() / 1000
        apart = torch.where((t - r).abs() < 1e-9, 1.0, t - r)
        step = (1 - width(r) / width(t)) / apart
        rate = (t - (1 - t) * S**2) / width(t) ** 2
        return over(torch.where((t - r).abs() < 1e-9, rate, step), x.double()) * x.double()


def perfect(**options: object) -> MeanFlow:
    return MeanFlow({"net": Perfect()}, LINE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("derivative", ["secant", "jvp"])
def test_the_identity_of_the_mean_flow(derivative: str) -> None:
    """u + (t - r) du/dt is the velocity for every step, also at t = 1, where the secant is one-sided."""
    model, rng = perfect(derivative=derivative), BatchRng(0, "", 0)
    t, r = model.times(ROWS, rng)
    t = t.clamp(min=0.1)
    r = torch.minimum(r, t)
    y = rng.normal((ROWS, 1, 1, 1))
    left = model.average(y, t, r, NO_LABEL) + over(t - r, y) * model.total_derivative(y, t, r, NO_LABEL)
    torch.testing.assert_close(left, model.average(y, t, t, NO_LABEL), rtol=0, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_a_step_of_any_length_is_exact(steps: int) -> None:
    """Any number of steps maps noise to S times noise, which is the exact flow of this Gaussian."""
    rng = SampleRng(range(ROWS), "sample")
    noise = rng.normal((ROWS, 1, 1, 1))
    drawn = perfect().sample(noise, NO_LABEL, rng, steps=steps)
    assert drawn.nfe == steps
    torch.testing.assert_close(drawn.x, S * noise, rtol=0, atol=1e-5)


def test_codes_are_the_noise_of_the_flow() -> None:
    """`encode` integrates u(x_t, t, t); for this Gaussian the code of x is x/S."""
    x = torch.randn(ROWS, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * S
    code = perfect().encode(x, NO_LABEL, SampleRng(range(ROWS), "code"))
    torch.testing.assert_close(code, x / S, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("net", "data"), [("unet", "grey"), ("unet", "colour"), ("dit", "grey"), ("mlp", "points")])
def test_the_secant_approximates_the_derivative(net: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow secant agrees with forward-mode differentiation, for every net and memory layout."""
    monkeypatch.setattr(meanflow, "HALF_WIDTH", 0.003)
    facts = FACTS[data]
    model, rng = shaken(family("meanflow", facts, net)), BatchRng(0, "", 0)
    assert isinstance(model, MeanFlow)
    t = 0.3 + 0.6 * rng.uniform((8,))
    r = t / 2
    y = rng.normal((8, *facts.shape)).to(memory_format=torch.channels_last)
    slopes = []
    for model.derivative in ("jvp", "secant"):
        slopes.append(model.total_derivative(y, t, r, batch(facts).label).flatten())
    assert float(torch.cosine_similarity(*slopes, dim=0)) > 0.999
    assert float(slopes[0].norm() / slopes[1].norm()) == pytest.approx(1, abs=0.02)


def test_times_are_ordered_and_have_the_given_shares() -> None:
    """0 <= r <= t <= 1, and the shares of r = t, r = 0 and t = 1 follow from the options."""
    t, r = perfect(instant=0.3, whole=0.4, first=0.2).times(20_000, BatchRng(0, "", 0))
    assert bool(((r >= 0) & (r <= t) & (t <= 1)).all())
    assert float((r == t).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((r == 0).float().mean()) == pytest.approx(0.7 * 0.4, abs=0.02)
    assert float((t == 1).float().mean()) == pytest.approx(0.7 * 0.2, abs=0.02)


def test_a_run_started_from_flow_matching_is_that_flow() -> None:
    """At first u(x, r, t) is the velocity of the source for every r, so n steps equal n Euler steps."""
    facts = FACTS["grey"]
    flow, model = shaken(family("flow_matching", facts)), family("meanflow", facts, seed=3)
    model.init_from(flow)
    noise, label, rng = batch(facts).x[:2], torch.tensor([0, 10]), SampleRng([1, 2], "sample")
    for steps in (1, 3):
        euler = flow.sample(noise, label, rng, sampler="euler", steps=steps).x  # type: ignore[call-arg]
        torch.testing.assert_close(model.sample(noise, label, rng, steps=steps).x, euler, rtol=0, atol=1e-5)  # type: ignore[call-arg]


class Steep(nn.Module):
    """A teacher of velocity on the straight path of this Gaussian, whose net reads one time."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return Perfect()(x, t, label, t)


def test_the_teachers_step_and_the_nets_own_make_the_average() -> None:
    """With a perfect teacher and a perfect net, the target is the average velocity over any step."""
    model, rng = perfect(mode="distill"), BatchRng(0, "", 0)
    model._teacher = (FlowMatching({"net": Steep()}, LINE),)
    t, r = model.times(ROWS, rng)
    y = rng.normal((ROWS, 1, 1, 1))
    aim, added = model._teach(y, t, r, NO_LABEL)
    torch.testing.assert_close(aim, model.average(y, t, r, NO_LABEL), rtol=0, atol=3e-2)  # a midpoint step has an error
    short = t - r <= meanflow.TEACHER_STEP
    assert 0 < int(short.sum()) < ROWS
    assert not added[short].any()
    assert added[~short].abs().max() > 0.1
    assert torch.equal(aim[t == r], model._teacher[0].net(y, 1000 * t, NO_LABEL).float()[t == r])


def test_the_teacher_is_not_part_of_the_run() -> None:
    """Distilling is the default of a run that starts from another, whose weights are neither saved nor trained."""
    facts = FACTS["grey"]
    flow = shaken(family("flow_matching", facts))
    assert MeanFlow.inherit({"kind": "flow_matching"}) == {"mode": "distill"}
    assert MeanFlow.inherit({"kind": "meanflow", "mode": "data"}) == {"mode": "data"}
    model = family("meanflow", facts, family={"mode": "distill", "guidance": 2.0})
    with pytest.raises(UsageError, match="no teacher"):
        model.loss("net", batch(facts), BatchRng(0, "loss/net", 0))
    names = set(model.state_dict())
    model.init_from(flow)
    assert set(model.state_dict()) == names
    loss, _ = model.loss("net", batch(facts), BatchRng(0, "loss/net", 0))
    loss.backward()
    assert all(p.grad is None for p in flow.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.net.parameters())


def test_only_an_ode_on_straight_paths_is_distilled() -> None:
    """DDPM of the same net and prediction is rejected, with the option that accepts it."""
    facts = FACTS["grey"]
    curved = family("ddpm", facts, family={"predict": "velocity"})
    with pytest.raises(UsageError, match="no ODE on straight paths") as error:
        family("meanflow", facts, family={"mode": "distill"}).init_from(curved)
    assert "family.mode=data" in error.value.hint


def test_a_student_can_teach() -> None:
    """A run of MeanFlow teaches by u(x_t, t, t), with guidance, too."""
    facts = FACTS["grey"]
    teacher = shaken(family("meanflow", facts))
    model = family("meanflow", facts, seed=3, family={"mode": "distill", "guidance": 2.0})
    model.init_from(teacher)
    data, t = batch(facts), torch.full((8,), 0.6)
    aim, _ = model._teach(data.x, t, t, data.label)
    strong, plain = (teacher.average(data.x, t, t, label) for label in (data.label, torch.full_like(data.label, 10)))
    torch.testing.assert_close(aim, torch.lerp(plain, strong, 2.0))


def test_rows_whose_derivative_overflows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss excludes these rows, and the loss and its gradient stay finite."""
    facts = FACTS["grey"]
    model = shaken(family("meanflow", facts, family={"instant": 0.0}))
    original = MeanFlow.total_derivative

    def broken(self: MeanFlow, *arguments: Any) -> Tensor:
        out = original(self, *arguments)
        out[0], out[1] = torch.inf, torch.nan
        return out

    whole, _ = model.loss("net", batch(facts), BatchRng(0, "loss/net", 0))
    monkeypatch.setattr(MeanFlow, "total_derivative", broken)
    value, numbers = model.loss("net", batch(facts), BatchRng(0, "loss/net", 0))
    value.backward()
    assert 0 < float(value.detach()) < float(whole.detach())
    assert all(number.isfinite() for number in numbers.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
