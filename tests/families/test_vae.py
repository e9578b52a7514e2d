"""The VAE's own facts."""

import math

import pytest
import torch
from small import FACTS, batch, family, shaken

from genflow.families.vae import Vae
from genflow.maths.seeds import BatchRng, SampleRng


def vae(data: str = "grey", **options: object) -> Vae:
    return shaken(family("vae", FACTS[data], family={"latent": 4, **options}))


def rng(purpose: str = "loss") -> BatchRng:
    return BatchRng(0, purpose, 0, total=8)


@pytest.mark.parametrize("data", FACTS)
def test_the_loss_is_the_elbo_a_number(data: str) -> None:
    """KL minus log P(x | z), over D; both logged in nats of a whole sample."""
    model = vae(data)
    loss, numbers = model.loss("model", batch(FACTS[data]), rng())
    whole = numbers["kl"] + numbers["reconstruction"]
    torch.testing.assert_close(loss * FACTS[data].dims, whole)


def test_the_kl_is_the_closed_form() -> None:
    """Against torch.distributions."""
    model, data = vae(), batch(FACTS["grey"])
    _, numbers = model.loss("model", data, rng())
    label = data.label.masked_fill(rng().uniform((8,)) < 0.1, 10)
    mean, log_variance = model._posterior(data.x, label)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    truth = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(numbers["kl"], truth)


@pytest.mark.parametrize(("warmup", "step", "share"), [(0.2, 0, 0.0), (0.2, 10, 0.5), (0.2, 20, 1.0), (0.0, 1, 1.0)])
def test_the_kl_term_warms_up(warmup: float, step: int, share: float) -> None:
    """Its weight rises linearly from 0 over the first `warmup` share of the steps, to beta."""
    model = vae(warmup=warmup, beta=2.0)
    model.prepare(step / 100)
    loss, numbers = model.loss("model", batch(FACTS["grey"]), rng())
    expected = 2.0 * share * numbers["kl"] + numbers["reconstruction"]
    torch.testing.assert_close(loss * FACTS["grey"].dims, expected)


@pytest.mark.parametrize("data", ["grey", "points"])
def test_a_draw_spreads_as_the_decoder_says(data: str) -> None:
    """draw=True adds the decoder's noise: a logistic of spread s pi / sqrt(3) for pictures, a normal for points."""
    model = vae(data)
    with torch.no_grad():
        model.model.get_parameter("log_scale").fill_(-4.0)
    seeds = range(400)
    noise = SampleRng(seeds, "sample").normal((400, 4))
    label = torch.full((400,), FACTS[data].classes)
    mean = model.sample(noise, label, SampleRng(seeds, "sample")).x
    drawn = model.sample(noise, label, SampleRng(seeds, "draw"), draw=True).x
    inside = (mean.abs() < 0.7) if data == "grey" else torch.ones_like(mean, dtype=torch.bool)
    spread = math.exp(-4) * (math.pi / math.sqrt(3) if data == "grey" else 1.0)
    assert float((drawn - mean)[inside].std()) == pytest.approx(spread, rel=0.1)


def test_temperature_scales_the_latent() -> None:
    """Half the temperature is half the noise."""
    model = vae()
    noise = SampleRng(range(3), "sample").normal((3, 4))
    label, none = torch.zeros(3, dtype=torch.long), SampleRng(range(3), "sample")
    cold = model.sample(noise, label, none, temperature=0.5).x
    torch.testing.assert_close(cold, model.sample(noise / 2, label, none).x)
