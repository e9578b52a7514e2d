"""Likelihoods match closed forms: densities, masses, bounds, and their units."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from support.oracle import TWO, Mixture
from torch import Tensor, nn

from genflow.families.vae import Vae
from genflow.maths import likelihood
from genflow.maths.paths import DiscretePath, EdmPath, Path, StraightPath, Time, along, cosine_betas, linear_betas
from genflow.maths.rng import BatchRng
from genflow.specs import DataSpec

PICTURES = DataSpec((1, 2, 2), levels=17)
POINTS = DataSpec((2, 1, 1), levels=None)


def rng(rows: int, step: int = 0) -> BatchRng:
    return BatchRng(0, "likelihood", step)


def points(rows: int, mixture: Mixture = TWO) -> Tensor:
    return mixture.draw(rows).reshape(rows, -1, 1, 1)


def test_a_uniform_model_costs_log2_of_the_levels() -> None:
    """K equally likely levels have log2 K bits/dim, from the masses and from the density 1/2 on [-1, 1]."""
    D, K = PICTURES.dims, 17
    assert likelihood.bits_per_dim(-D * math.log(K), D) == pytest.approx(math.log2(K))
    density = torch.tensor([-D * math.log(2)])
    assert likelihood.bits_per_dim(float(likelihood.discrete_nats(density, PICTURES)), D) == pytest.approx(math.log2(K))


def test_dequantized_levels_stay_in_their_bins() -> None:
    """x + uniform noise of one bin's width rounds back to its level; points stay unchanged."""
    k = torch.arange(17).repeat(200)[:, None]
    x = (2 * k + 1) / 17 - 1
    y = likelihood.dequantize(x, PICTURES, rng(len(x)))
    assert torch.equal(((y + 1) * 17 / 2).floor().long(), k)
    assert stats.kstest((((y + 1) * 17 / 2) - k).flatten().numpy(), "uniform").pvalue > 0.01
    assert likelihood.dequantize(x, POINTS, rng(len(x))) is x


def test_points_are_measured_in_raw_coordinates() -> None:
    """log p(point) = log p(point / scale) - D log scale."""
    scaled = DataSpec((2, 1, 1), levels=None, scale=4.0)
    assert float(likelihood.discrete_nats(torch.tensor([-1.0]), scaled)) == pytest.approx(-1 - 2 * math.log(4))


@pytest.mark.parametrize("log_cdf", [F.logsigmoid, torch.special.log_ndtr])
@pytest.mark.parametrize("K", [2, 17, 256])
def test_the_masses_of_all_levels_sum_to_one(log_cdf, K: int) -> None:  # type: ignore[no-untyped-def]
    """The sum is 1 for narrow, wide and distant densities; a lower limit on the masses would break this."""
    x = (2 * torch.arange(K, dtype=torch.float64) + 1) / K - 1
    for mean in (-4.0, -0.37, 0.0, 0.98, 3.0):
        for log_scale in (-7.0, -4.0, -1.0, 2.0):
            nats = likelihood.discretized(log_cdf, x, torch.tensor(mean), torch.tensor(log_scale), K)
            assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-9)
            assert (nats <= 1e-12).all()


def test_masses_far_from_the_mean_are_exact_and_have_a_gradient() -> None:
    """45 scales away, in single precision, log mass = -offset/scale + log(2 sinh(1/(K scale))) for a logistic."""
    K, offset, log_scale = 256, 0.3, -5.0
    mean = torch.tensor([-offset], requires_grad=True)
    x = torch.tensor([1 / K])
    nats = likelihood.discretized(F.logsigmoid, x, mean, torch.tensor(log_scale), K)
    scale = math.exp(log_scale)
    truth = -(offset + 1 / K) / scale + math.log(2 * math.sinh(1 / (K * scale)))
    assert float(nats.detach()) == pytest.approx(truth, rel=1e-5)
    nats.backward()
    assert float(mean.grad) == pytest.approx(1 / scale, rel=1e-4)


NARROW = Mixture([0.5, 0.2, 0.3], [[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], 0.0141)  # as narrow as the modes of ring8


@pytest.mark.parametrize(("steps", "tolerance"), [(20, 0.02), (80, 2e-4)])
@pytest.mark.parametrize("mixture", [TWO, NARROW], ids=["wide", "narrow"])
def test_the_ode_gives_the_density_of_a_mixture(mixture: Mixture, steps: int, tolerance: float) -> None:
    """With the exact trace and the analytic velocity, log p(x) is right on average and within its standard error.

    Even steps would overestimate the narrow mixture's density by 0.89 nats with 20 steps, and by 0.07 with 100.
    """
    x = points(200, mixture)
    nats, stderr, nfe = likelihood.ode_log_density(mixture.velocity, x, rng(200), steps=steps)
    off = nats - mixture.log_density(x)
    assert float(off.mean()) == pytest.approx(0, abs=tolerance)
    assert float(off.square().mean().sqrt()) < 2 * float(stderr.square().mean().sqrt())
    assert nfe == 3 * steps


def test_probes_give_the_exact_trace_on_average() -> None:
    """Hutchinson's estimate in 12 dimensions is unbiased, and its standard error matches its spread."""
    centre = np.linspace(-0.8, 0.8, 12)
    mixture = Mixture([0.5, 0.5], [centre.tolist(), (-centre[::-1] ** 2).tolist()], 0.3)
    x = points(60, mixture).reshape(60, 3, 2, 2)
    nats, stderr, _ = likelihood.ode_log_density(mixture.velocity, x, rng(60), steps=60, probes=16)
    score = (nats - mixture.log_density(x)) / stderr
    assert abs(float(score.mean())) < 0.5  # of 60 t-distributed scores: 4 standard errors
    assert 0.7 < float(score.std()) < 1.8  # the scores' tails are heavy: over draws their deviation is 0.8 to 1.6


def test_a_gaussian_has_its_closed_form() -> None:
    """The result is log N(x; m, s^2) in 16 dimensions; one probe is exact, as the Jacobian is a multiple of I."""
    gauss = Mixture([1.0], [[0.3] * 16], 0.5)
    x = points(20, gauss).reshape(20, 1, 4, 4)
    nats, _, _ = likelihood.ode_log_density(gauss.velocity, x, rng(20), steps=100, probes=1)
    torch.testing.assert_close(nats, gauss.log_density(x), rtol=0, atol=0.02)


PATHS: dict[str, Path] = {
    "linear": DiscretePath(linear_betas()),
    "cosine": DiscretePath(cosine_betas()),
    "straight": StraightPath(),
    "edm": EdmPath(),
}


@pytest.mark.parametrize("mixture", [Mixture([1.0], [[0.4, 0.4]], 0.5), TWO], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("path", PATHS)
def test_the_bound_of_a_perfect_denoiser_is_the_log_density(path: str, mixture: Mixture) -> None:
    """On every path the mean of the bound is log p(x), and its standard error is the spread around it.

    DDPM's own bound with T = 1000 discrete levels would be lower by up to half a nat per number.
    """
    x, rows = points(500, mixture), 500
    denoise = mixture.denoiser(PATHS[path])
    nats, stderr = likelihood.variational_bound(denoise, PATHS[path], x, POINTS, rng(rows), strata=60)
    off = nats - mixture.log_density(x)
    spread = float(off.std())
    assert float(off.mean()) == pytest.approx(0, abs=3 * spread / rows**0.5)
    assert 0.8 * spread < float(stderr.square().mean().sqrt()) < 1.25 * spread


@pytest.mark.parametrize("levels", [2, 8])
def test_the_bound_of_levels_is_below_their_probability(levels: int) -> None:
    """Four numbers with K equally likely values and an exact denoiser cost at least log2 K bits/dim, and hardly more.

    E[x | x_t] is the mean of the values, weighted by N(x_t; alpha x, sigma^2).
    """
    path, facts, rows = PATHS["cosine"], DataSpec((1, 2, 2), levels=levels), 300
    values = (2 * torch.arange(levels, dtype=torch.float64) + 1) / levels - 1

    def denoise(x: Tensor, t: Time) -> Tensor:
        alpha, sigma = along(path.alpha, t, x), along(path.sigma, t, x)
        off = (x[..., None] - alpha[..., None] * values) / sigma[..., None]
        return ((-0.5 * off**2).softmax(-1) * values).sum(-1)

    x = values[torch.randint(levels, (rows, 1, 2, 2), generator=torch.Generator().manual_seed(0))]
    nats, _ = likelihood.variational_bound(denoise, path, x, facts, rng(rows), strata=100)
    bits = likelihood.bits_per_dim(float(nats.mean()), 4)
    assert math.log2(levels) - 0.05 < bits < math.log2(levels) + 0.1


class Affine(nn.Module):
    """x -> x W' + b, for every label."""

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias, self.shape = nn.Parameter(weight), nn.Parameter(bias), shape

    def forward(self, x: Tensor, t: None, label: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight.T + self.bias).unflatten(1, self.shape)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_the_elbo_of_a_linear_vae(loss: float) -> None:
    """The ELBO of x = W z + s eps is log p(x) minus the KL divergence of the encoder from the true posterior.

    W has orthogonal columns, so the true posterior is diagonal. An encoder whose mean is off by `loss` in each of 2
    coordinates has KL = sum loss^2 / (2 variance) nats.
    """
    s, lengths = 0.5, torch.tensor([1.2, 0.4])
    W = torch.tensor([[0.6, -0.8], [0.8, 0.6]]) * lengths
    variance = s**2 / (s**2 + lengths**2)  # of z given x
    encode = torch.cat([(W / s**2).T * variance[:, None], torch.zeros(2, 2)])
    offset = torch.cat([torch.full((2,), loss), variance.log()])
    nets = {"encoder": Affine(encode, offset, (2, 2)), "decoder": Affine(W, torch.zeros(2), (2, 1, 1))}
    family = Vae(nets, POINTS, latent=2, posterior_samples=600)  # type: ignore[arg-type]
    with torch.no_grad():
        family.model.get_parameter("log_scale").fill_(math.log(s))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator) @ W.T + s * torch.randn(50, 2, generator=generator)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), W @ W.T + s**2 * torch.eye(2)).log_prob(x)
    elbo = family.log_likelihood(x.reshape(50, 2, 1, 1), torch.zeros(50, dtype=torch.long), rng(50))
    lost = float((loss**2 / (2 * variance)).sum())
    assert float((truth - elbo.nats).mean()) == pytest.approx(lost, abs=0.01)
    assert elbo.kind == "lower-bound"
    assert elbo.nfe == 601
