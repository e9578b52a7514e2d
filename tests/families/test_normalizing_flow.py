"""The normalizing flow: its density integrates to 1, and samples come from it."""

import math
from dataclasses import replace

import pytest
import torch
from support.small import FACTS, batch, family, shaken
from torch import Tensor

from genflow import build
from genflow.families.normalizing_flow import NormalizingFlow
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec

POINTS, GREY = FACTS["points"], FACTS["grey"]


def flow(facts: DataSpec, size: float = 0.1, net: str = "auto", **options: object) -> NormalizingFlow:
    return shaken(family("normalizing_flow", facts, net, family=options), size)


def grid(reach: float, cells: int) -> tuple[Tensor, float]:
    """The midpoints of square cells of the plane (cells^2, 2, 1, 1), and the area of a cell."""
    step = 2 * reach / cells
    line = (torch.arange(cells) + 0.5) * step - reach
    return torch.cartesian_prod(line, line)[:, :, None, None], step**2


def no_label(x: Tensor, facts: DataSpec) -> Tensor:
    return torch.full((len(x),), facts.classes)


@torch.no_grad()
def test_the_density_of_the_plane_integrates_to_one() -> None:
    """The midpoint rule on 250 x 250 cells gives 1 within 0.1 %, for a density far from N(0, I)."""
    model = flow(POINTS, 0.05)
    x, area = grid(7, 250)
    log_p = model.log_density(x, no_label(x, POINTS))
    assert float(log_p.double().exp().sum() * area) == pytest.approx(1, abs=1e-3)
    plain = -0.5 * x.square().flatten(1).sum(1) - math.log(2 * math.pi)
    assert float(((log_p - plain).abs() * log_p.exp()).sum() * area) > 0.1


@torch.no_grad()
def test_samples_come_from_the_density() -> None:
    """The share of 20,000 samples in each cell of a coarse grid is the density's integral over it."""
    model = flow(POINTS)
    noise = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = model.sample(noise, no_label(noise, POINTS), SampleRng([], "sample")).x.flatten(1)
    x, area = grid(4, 200)
    mass = model.log_density(x, no_label(x, POINTS)).exp().reshape(8, 25, 8, 25).sum((1, 3)) * area
    cell = (drawn + 4).floor().long()
    inside = ((cell >= 0) & (cell < 8)).all(1)
    count = torch.bincount(cell[inside] @ torch.tensor([8, 1]), minlength=64).reshape(8, 8)
    spread = (mass * (1 - mass) / 20_000).sqrt()
    assert float(((count / 20_000 - mass) / (spread + 1e-4)).abs().max()) < 4.5


@torch.no_grad()
def test_an_affine_flow_has_a_gaussian_density() -> None:
    """With constant mu and s, z = (x - mu) exp(-s): the density is normal, and nats are in raw coordinates."""
    model = family("normalizing_flow", POINTS)
    for coupling in model.net.couplings[:2]:  # each of the two maps one number
        coupling.leave.bias[:2] = torch.tensor([0.4, -0.7])
    x = batch(POINTS, rows=50).x
    truth = torch.distributions.Normal(0.4, math.exp(8 * math.tanh(-0.7 / 8))).log_prob(x.flatten(1)).sum(1)
    torch.testing.assert_close(model.log_density(x, no_label(x, POINTS)), truth, rtol=1e-3, atol=5e-3)
    found = model.log_likelihood(x, no_label(x, POINTS), SampleRng(range(50), "l"))
    torch.testing.assert_close(found.nats, (truth - 2 * math.log(1.5)).double(), rtol=1e-3, atol=5e-3)
    assert float(found.stderr.max()) == 0


@torch.no_grad()
def test_the_density_of_the_box_integrates_to_one() -> None:
    """The density of two pixels integrates to 1 in w, x = tanh w; much of the mass is close to black and white."""
    facts = DataSpec((1, 1, 2), levels=5)
    model = flow(facts, net="spline")
    w, area = grid(6.5, 300)
    w = w.reshape(-1, 1, 1, 2).double()
    log_p = model.log_density(w.tanh().float(), no_label(w, facts)).double()
    mass = (log_p.exp() / w.cosh().square().flatten(1).prod(1)).sum() * area
    assert float(mass) == pytest.approx(1, abs=5e-3)  # the margins are outside the box


@pytest.mark.parametrize("net", ["spline", "tarflow"])
def test_the_loss_is_in_nats_and_logged_as_bits_per_dimension(net: str) -> None:
    """The loss is -log p of the dequantized batch in nats per number; the logged value is in bits."""
    model, data = flow(GREY, 0.05, net, forget=0.0), batch(GREY)
    loss, numbers = model.loss("net", data, BatchRng(0, "loss", 0))
    x = data.x + (BatchRng(0, "loss", 0).uniform(data.x.shape) - 0.5) * (2 / 17)
    nats = model.log_density(x, data.label) + 64 * math.log(2 / 17)
    torch.testing.assert_close(loss, -nats.mean() / 64)
    torch.testing.assert_close(numbers["bits_per_dim"], loss / math.log(2))


@torch.no_grad()
def test_the_log_density_includes_the_logit_map() -> None:
    """With an identity net each pixel has the density of a logit-normal variable."""
    facts = DataSpec((1, 1, 2), levels=256)
    model = family("normalizing_flow", facts, "spline")
    x = torch.tensor([[-0.999, 0.3], [0.0, 0.9999]])
    p = 1e-5 + (1 - 2e-5) * (x + 1) / 2
    y = (p / (1 - p)).log() / 3
    truth = -0.5 * (y.square() + math.log(2 * math.pi)) + ((1 - 2e-5) / 2 / 3 / (p * (1 - p))).log()
    found = model.log_density(x[:, None, None], no_label(x, facts))
    torch.testing.assert_close(found, truth.sum(1), rtol=1e-3, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 16])
def test_the_outermost_levels_have_a_finite_likelihood(level: int) -> None:
    """At the edge of the box, where the logit is largest, densities are finite and codes decode to x."""
    model = flow(GREY, 0.05)
    edge = torch.full((2, 1, 8, 8), 2 * level / 16 - 1.0)  # -1 or 1, which rounding of x + u can give
    label = no_label(edge, GREY)
    assert model.log_density(edge, label).isfinite().all()
    back = model.decode(model.encode(edge, label, SampleRng([1, 2], "e")), label, SampleRng([1, 2], "e"))
    torch.testing.assert_close(back, edge, rtol=0, atol=1e-3)


@torch.no_grad()
def test_more_draws_have_a_standard_error() -> None:
    """16 draws of u have a standard error that matches their spread; one draw has none."""
    data = batch(GREY, rows=4)
    found = [
        flow(GREY, 0.05, draws=draws).log_likelihood(data.x, data.label, SampleRng(range(4), "l")) for draws in (1, 16)
    ]
    assert float(found[0].stderr.max()) == 0
    assert float(found[1].stderr.min()) > 0
    assert ((found[0].nats - found[1].nats).abs() < 6 * 16**0.5 * found[1].stderr).all()
    assert (found[0].nfe, found[1].nfe) == (1, 16)


def test_temperature_scales_the_noise() -> None:
    """Half the temperature gives the same samples as half the noise."""
    model, seeds = flow(GREY, 0.05), range(3)
    noise, label = SampleRng(seeds, "sample").normal((3, 1, 8, 8)), torch.zeros(3, dtype=torch.long)
    cold = model.sample(noise, label, SampleRng(seeds, "s"), temperature=0.5).x
    torch.testing.assert_close(cold, model.sample(noise / 2, label, SampleRng(seeds, "s"), temperature=1.0).x)


def test_the_default_temperature_is_lower_for_pictures() -> None:
    """The default temperature is 1 for points, 0.8 for pictures and 0.5 for latents; codes are decoded at 1."""
    for facts, temperature in ((POINTS, 1.0), (GREY, 0.8), (FACTS["latents"], 0.5)):
        model, none = flow(facts, 0.05), SampleRng([], "s")
        noise = torch.randn(3, *facts.shape, generator=torch.Generator().manual_seed(0))
        label = no_label(noise, facts)
        expected = model.sample(noise, label, none, temperature=temperature).x
        assert torch.equal(model.sample(noise, label, none).x, expected)
        assert torch.equal(model.decode(noise, label, none), model.sample(noise, label, none, temperature=1.0).x)


def test_training_adds_noise_to_latents_only() -> None:
    """The loss on latents is that of the same draws of x + 0.3 eps; on pictures there is no other noise by default."""
    data = batch(FACTS["latents"])
    noisy, plain = (flow(FACTS["latents"], 0.05, **options) for options in ({}, {"noise": 0.0}))
    losses = [model.row_losses(data, SampleRng(range(len(data.x)), "loss")) for model in (noisy, plain)]
    eps = SampleRng(range(len(data.x)), "loss").normal(data.x.shape)
    moved = replace(data, x=data.x + 0.3 * eps)
    labels = SampleRng(range(len(data.x)), "loss")
    labels.normal(data.x.shape)
    torch.testing.assert_close(losses[0], plain.row_losses(moved, labels))
    assert not torch.allclose(losses[0], losses[1])
    assert (flow(GREY).noise, flow(POINTS).noise) == (0.0, 0.0)


def test_the_net_follows_from_the_data() -> None:
    """The net is a spline flow for points and TarFlow for pictures; ordinary nets are rejected."""
    assert NormalizingFlow.default_net_for(POINTS) == {"kind": "spline"}
    assert NormalizingFlow.default_net_for(GREY) == {"kind": "tarflow"}
    on_latents = {"kind": "tarflow", "patch": 4, "depth": 2}
    assert NormalizingFlow.default_net_for(GREY.of_latents((8, 16, 16), "ae")) == on_latents
    with pytest.raises(build.UsageError, match="an invertible net is needed"):
        family("normalizing_flow", GREY, "mlp")
