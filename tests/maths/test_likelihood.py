"""Likelihoods against closed forms: densities, masses, bounds, and their units."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import TWO, Mixture
from scipy import stats
from torch import Tensor, nn

from genflow.facts import Facts
from genflow.families.ddpm import Ddpm
from genflow.families.vae import Vae
from genflow.maths import likelihood
from genflow.maths.paths import Path, StraightPath
from genflow.maths.seeds import BatchRng

PICTURES = Facts((1, 2, 2), levels=17)
POINTS = Facts((2, 1, 1), levels=None)


def rng(rows: int, step: int = 0) -> BatchRng:
    return BatchRng(0, "likelihood", step, total=rows)


def points(rows: int, mixture: Mixture = TWO) -> Tensor:
    return mixture.draw(rows).reshape(rows, -1, 1, 1)


def test_a_uniform_model_takes_log2_of_the_levels() -> None:
    """bits/dim of K equally likely levels is log2 K: for the masses, and for the density 1/2 on [-1, 1]."""
    D, K = PICTURES.dims, 17
    assert likelihood.bits_per_dim(-D * math.log(K), D) == pytest.approx(math.log2(K))
    density = torch.tensor([-D * math.log(2)])
    assert likelihood.bits_per_dim(float(likelihood.discrete_nats(density, PICTURES)), D) == pytest.approx(math.log2(K))


def test_dequantized_levels_stay_in_their_bins() -> None:
    """x + uniform noise of one bin's width rounds back to the level; points stay as they are."""
    k = torch.arange(17).repeat(200)[:, None]
    x = (2 * k + 1) / 17 - 1
    y = likelihood.dequantize(x, PICTURES, rng(len(x)))
    assert torch.equal(((y + 1) * 17 / 2).floor().long(), k)
    assert stats.kstest((((y + 1) * 17 / 2) - k).flatten().numpy(), "uniform").pvalue > 0.01
    assert likelihood.dequantize(x, POINTS, rng(len(x))) is x


def test_points_are_measured_in_their_own_coordinates() -> None:
    """log p(point) = log p(point / scale) - D log scale."""
    scaled = Facts((2, 1, 1), levels=None, scale=4.0)
    assert float(likelihood.discrete_nats(torch.tensor([-1.0]), scaled)) == pytest.approx(-1 - 2 * math.log(4))


@pytest.mark.parametrize("log_cdf", [F.logsigmoid, torch.special.log_ndtr])
@pytest.mark.parametrize("K", [2, 17, 256])
def test_the_masses_of_all_levels_sum_to_one(log_cdf, K: int) -> None:  # type: ignore[no-untyped-def]
    """However narrow, wide or far away the density is: a floor under a mass would break this."""
    x = (2 * torch.arange(K, dtype=torch.float64) + 1) / K - 1
    for mean in (-4.0, -0.37, 0.0, 0.98, 3.0):
        for log_scale in (-7.0, -4.0, -1.0, 2.0):
            nats = likelihood.discretized(log_cdf, x, torch.tensor(mean), torch.tensor(log_scale), K)
            assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-9)
            assert (nats <= 1e-12).all()


def test_masses_far_from_the_mean_are_exact_and_have_a_gradient() -> None:
    """In single precision, 45 scales away: log mass = -offset/scale + log(2 sinh(1/(K scale))) for a logistic."""
    K, offset, log_scale = 256, 0.3, -5.0
    mean = torch.tensor([-offset], requires_grad=True)
    x = torch.tensor([1 / K])
    nats = likelihood.discretized(F.logsigmoid, x, mean, torch.tensor(log_scale), K)
    scale = math.exp(log_scale)
    truth = -(offset + 1 / K) / scale + math.log(2 * math.sinh(1 / (K * scale)))
    assert float(nats.detach()) == pytest.approx(truth, rel=1e-5)
    nats.backward()
    assert float(mean.grad) == pytest.approx(1 / scale, rel=1e-4)


@pytest.mark.parametrize(("steps", "tolerance"), [(20, 0.1), (100, 5e-3)])
def test_the_ode_finds_the_density_of_a_mixture(steps: int, tolerance: float) -> None:
    """Exact trace in two dimensions, the analytic velocity: log p(x) of every point."""
    x = points(200)
    nats, stderr, nfe = likelihood.ode_log_density(TWO.velocity, x, rng(200), steps=steps)
    torch.testing.assert_close(nats, TWO.log_density(x), rtol=0, atol=tolerance)
    assert stderr.tolist() == [0.0] * 200
    assert nfe == 2 * steps


def test_probes_give_the_exact_trace_on_average() -> None:
    """Hutchinson's estimate in 12 dimensions is unbiased, and its standard error is honest."""
    centre = np.linspace(-0.8, 0.8, 12)
    mixture = Mixture([0.5, 0.5], [centre.tolist(), (-centre[::-1] ** 2).tolist()], 0.3)
    x = points(60, mixture).reshape(60, 3, 2, 2)
    nats, stderr, _ = likelihood.ode_log_density(mixture.velocity, x, rng(60), steps=60, probes=16)
    score = (nats - mixture.log_density(x)) / stderr
    assert abs(float(score.mean())) < 0.5  # of 60 t-distributed scores: 4 standard errors
    assert 0.7 < float(score.std()) < 1.4


def test_a_gaussian_has_its_closed_form() -> None:
    """log N(x; m, s^2) in 16 dimensions: its Jacobian is a multiple of I, so that one probe is exact."""
    gauss = Mixture([1.0], [[0.3] * 16], 0.5)
    x = points(20, gauss).reshape(20, 1, 4, 4)
    nats, _, _ = likelihood.ode_log_density(gauss.velocity, x, rng(20), steps=100, probes=1)
    torch.testing.assert_close(nats, gauss.log_density(x), rtol=0, atol=0.02)


class Perfect(nn.Module):
    """The best net for a mixture, on DDPM's levels."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.path: Path = StraightPath()  # the family's, once there is one

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        answer = torch.empty_like(x)
        for time in t.unique():
            rows = t == time
            level = (float(time) + 1) / 1000
            alpha, sigma = self.path.alpha(level), self.path.sigma(level)
            answer[rows] = self.mixture.predict("v", x[rows], alpha, sigma).to(x.dtype)
        return answer


def perfect(mixture: Mixture, **options: object) -> Ddpm:
    net = Perfect(mixture)
    family = Ddpm({"net": net}, POINTS, **options)  # type: ignore[arg-type]
    net.path = family.path
    return family


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_of_a_perfect_denoiser_has_its_closed_form(schedule: str) -> None:
    """DDPM with T = 1000 on a Gaussian: the mean of every term is known, and lies above the entropy.

    E||x - E[x | x_k]||^2 = D v_k with v = s^2 sigma^2 / (alpha^2 s^2 + sigma^2). The bound loses up to half a
    nat a number to the entropy: the posterior's variance is too small for the first levels, whose noise-to-signal
    ratio doubles from one to the next.
    """
    m, s, rows = 0.4, 0.5, 400
    family = perfect(Mixture([1.0], [[m, m]], s), schedule=schedule, bound_levels=999)
    bars = family.path.alpha_bar
    snr, v = bars / (1 - bars), s**2 * (1 - bars) / (bars * s**2 + 1 - bars)
    last = 0.5 * (bars[-1] * (m**2 + s**2) - bars[-1] - np.log(1 - bars[-1]))
    first = 0.5 * (np.log(2 * np.pi / snr[0]) + v[0] * snr[0])
    expected = 2 * (last + 0.5 * ((snr[:-1] - snr[1:]) * v[1:]).sum() + first)
    x = points(rows, family.net.mixture).float()
    bound = family.log_likelihood(x, torch.zeros(rows, dtype=torch.long), rng(rows))
    assert float(-bound.nats.mean()) == pytest.approx(expected, abs=3 * float(bound.nats.std()) / rows**0.5)
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e * s**2)
    assert entropy < expected < entropy + 1
    assert bound.kind == "lower-bound"
    assert bound.nfe == 1000


@pytest.mark.parametrize("levels", [2, 20, 60])
def test_fewer_levels_estimate_the_same_bound(levels: int) -> None:
    """Stratified levels are unbiased, and their standard error is the spread of repeated estimates."""
    rows = 600
    x, label = points(1).expand(rows, -1, -1, -1).float(), torch.zeros(rows, dtype=torch.long)
    few = perfect(TWO, bound_levels=levels).log_likelihood(x, label, rng(rows, 1))
    every = perfect(TWO, bound_levels=999).log_likelihood(x[:100], label[:100], rng(100, 2))
    spread = float(few.nats.std())
    assert few.nfe == levels + 1
    assert float(few.nats.mean()) == pytest.approx(float(every.nats.mean()), abs=4 * spread / rows**0.5 + 0.1)
    assert 0.7 * spread < float(few.stderr.square().mean().sqrt()) < 2 * spread


@pytest.mark.parametrize(("T", "levels"), [(2, 40), (3, 2), (1000, 40), (1000, 1000), (50, 49), (10_000, 7)])
def test_strata_hold_every_level_once(T: int, levels: int) -> None:
    """They are as many as asked for, none is empty, and together they are 1..T-1."""
    cuts = perfect(TWO, T=T, bound_levels=levels)._strata()
    assert len(cuts) == min(levels, T - 1) + 1
    assert cuts[0] == 1
    assert cuts[-1] == T
    assert min(np.diff(cuts)) >= 1


class Affine(nn.Module):
    """x -> x W' + b, whatever the label."""

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias, self.shape = nn.Parameter(weight), nn.Parameter(bias), shape

    def forward(self, x: Tensor, t: None, label: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight.T + self.bias).unflatten(1, self.shape)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_the_elbo_of_a_linear_vae(loss: float) -> None:
    """x = W z + s eps with orthogonal columns: the true posterior is diagonal, so the best encoder's ELBO is log p(x).

    An encoder whose mean is off by `loss` in each of 2 coordinates loses KL = sum loss^2 / (2 variance) nats.
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
