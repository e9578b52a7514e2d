"""DDPM: facts of its loss, preconditioning and likelihoods, with the best net for a mixture."""

import math

import pytest
import torch
from support.oracle import TWO, Mixture
from support.small import FACTS, family, shaken
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.ddpm import Ddpm
from genflow.maths.guidance import Guided
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec

POINTS = DataSpec((2, 1, 1), levels=None)


class Perfect(nn.Module):
    """The best net for a mixture; it records its time inputs."""

    def __init__(self, mixture: Mixture, T: int) -> None:
        super().__init__()
        self.mixture, self.T, self.times = mixture, T, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.times = t
        answer = torch.empty_like(x)
        for time in t.unique():
            at = (float(time) * self.T / 1000 + 1) / self.T
            alpha, sigma = self.family.path.alpha(at), self.family.path.sigma(at)
            answer[t == time] = self.mixture.predict(self.family.predict, x[t == time], alpha, sigma).float()
        return answer


def perfect(**options: object) -> Ddpm:
    net = Perfect(TWO, int(options.get("T", 1000)))  # type: ignore[call-overload]
    model = Ddpm({"net": net}, POINTS, **options)  # type: ignore[arg-type]
    object.__setattr__(net, "family", model)  # without registering it as a submodule
    return model


@pytest.mark.parametrize("predict", ["eps", "x", "v", "velocity"])
def test_every_target_samples_the_same_data(predict: str) -> None:
    """Perfect nets that predict eps, x, v or the velocity give the same samples from the same noise."""
    rng = SampleRng(range(8), "sample")
    noise, label = rng.normal((8, 2, 1, 1)), torch.zeros(8, dtype=torch.long)
    drawn = perfect(schedule="linear", predict=predict).sample(noise, label, rng, sampler="ddim", steps=20).x
    reference = perfect(schedule="linear", predict="v").sample(noise, label, rng, sampler="ddim", steps=20).x
    torch.testing.assert_close(drawn, reference, rtol=0, atol=1e-3)
    assert float(TWO.log_density(drawn).mean()) > -1


@pytest.mark.parametrize("T", [10, 100, 1000])
def test_training_levels_are_uniform(T: int) -> None:
    """Levels k are uniform in 0..T-1, and the net's time input is 1000 k / T."""
    model = perfect(T=T)
    rows = 2000
    batch = Batch(TWO.draw(rows).float().reshape(rows, 2, 1, 1), torch.zeros(rows, dtype=torch.long))
    loss, _ = model.loss("net", batch, BatchRng(0, "loss", 0))
    k = model.net.times * T / 1000
    torch.testing.assert_close(k, k.round())
    assert k.min() >= 0
    assert k.max() <= T - 1
    assert float(k.mean()) == pytest.approx((T - 1) / 2, rel=0.05)
    assert float(loss) < 1  # the remaining variance; an output of 0 would have a loss of about 1


class Linear(nn.Module):
    """Return a multiple of the input, and record the inputs."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__()
        self.share = share
        self.seen = self.times = torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.seen, self.times = x, t
        return self.share * x


def gaussian(rows: int, facts: DataSpec) -> Batch:
    """Pictures of independent normal numbers with mean 0 and standard deviation `sigma_data`."""
    noise = torch.randn(rows, *facts.shape, generator=torch.Generator().manual_seed(0))
    return Batch(facts.sigma_data * noise, torch.zeros(rows, dtype=torch.long))


@pytest.mark.parametrize("sigma_data", [0.2, 0.7])
def test_edm_has_inputs_and_targets_of_unit_variance(sigma_data: float) -> None:
    """Inputs and targets have unit variance, and noise levels follow ln r ~ N(-1.2, 1.2^2)."""
    facts, rows = DataSpec((1, 4, 4), levels=256, sigma_data=sigma_data), 3000
    net = Linear()
    model = Ddpm({"net": net}, facts, schedule="edm")
    loss, _ = model.loss("net", gaussian(rows, facts), BatchRng(0, "loss", 0))
    assert float(loss.detach()) == pytest.approx(1, abs=0.02)  # the target's square, as the output is 0
    assert float(net.seen.std()) == pytest.approx(1, abs=0.02)
    log_r = net.times / 1000 * math.log(80 / 0.002) + math.log(0.002)
    assert float(log_r.mean()) == pytest.approx(-1.2, abs=0.08)
    assert float(log_r.std()) == pytest.approx(1.2, abs=0.08)


@pytest.mark.parametrize("r", [0.002, 0.5, 80.0])
def test_edm_has_the_preconditioning_of_table_1(r: float) -> None:
    """D = c_skip z + c_out F(c_in z), where F is minus the net's output and z = x_t / alpha."""
    s = 0.6
    model = Ddpm({"net": Linear(0.3)}, DataSpec((1, 4, 4), levels=256, sigma_data=s), schedule="edm")
    z = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = model.path.time(r / (1 + r))
    denoise = model.denoiser(Guided(model.net, torch.zeros(5, dtype=torch.long), 0))
    c_skip, c_out, c_in = s**2 / (r**2 + s**2), r * s / math.hypot(r, s), 1 / math.hypot(r, s)
    expected = c_skip * z + c_out * -(0.3 * c_in * z).float()
    torch.testing.assert_close(denoise(z * model.path.alpha(t), t).double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shift", "dims", "expected"), [(None, 512, 0.5), (None, 2048, 0.75), (1.0, 2048, 0.5)])
def test_large_latents_are_trained_at_more_noise(shift: float | None, dims: int, expected: float) -> None:
    """With a shift s the median level is at the time s/(1 + s); the default is D / 512 within 1 to 3."""
    model = Ddpm({"net": nn.Identity()}, DataSpec((dims // 64, 8, 8), None, autoencoder="ae"), shift=shift)
    times = model._levels(20_000, BatchRng(0, "loss", 0))[2]
    assert float(times.median()) / 1000 == pytest.approx(expected, abs=0.02)
    assert times.min() >= 0
    assert times.max() <= 999


def test_a_start_from_another_prediction_is_refused() -> None:
    """The same weights would be read as another quantity; a run that predicts the same is a start."""
    begun = family("ddpm", FACTS["grey"], "mlp", family={"predict": "v"})
    family("ddpm", FACTS["grey"], "mlp", family={"predict": "v"}).init_from(begun)
    with pytest.raises(UsageError, match="it predicts v, not velocity"):
        family("ddpm", FACTS["grey"], "mlp", family={"predict": "velocity"}).init_from(begun)
    for kind in ("flow_matching", "meanflow"):
        with pytest.raises(UsageError, match="it predicts v, not velocity"):
            family(kind, FACTS["grey"], "mlp").init_from(begun)


def test_edm_rejects_other_predictions() -> None:
    """`schedule: edm` with a prediction of eps or x is rejected when the family is built."""
    with pytest.raises(UsageError, match=r"needs family\.predict=v or velocity, not eps"):
        family("ddpm", FACTS["grey"], "mlp", family={"schedule": "edm", "predict": "eps"})


@pytest.mark.parametrize(
    ("schedule", "predict"),
    [("cosine", "eps"), ("cosine", "x"), ("cosine", "velocity"), ("linear", "v"), ("edm", "v"), ("edm", "velocity")],
)
def test_min_snr_gives_the_same_weight_for_every_target(schedule: str, predict: str) -> None:
    """The loss is E min(SNR, 5) ||x - x0||^2 for every kind of prediction, with x0 converted from it."""
    facts, rows = DataSpec((1, 4, 4), levels=256, sigma_data=0.5), 400
    model = Ddpm({"net": Linear(0.2)}, facts, schedule=schedule, predict=predict, weight="min_snr")  # type: ignore[arg-type]
    batch = gaussian(rows, facts)
    loss, _ = model.loss("net", batch, BatchRng(0, "loss", 0))
    rng = BatchRng(0, "loss", 0)
    eps = rng.normal(batch.x.shape)
    alpha, sigma, net_time = (v[:, None, None, None] for v in model._levels(rows, rng))
    x0 = model.predict_x0(lambda y, t: 0.2 * y, alpha * batch.x + sigma * eps, net_time, alpha, sigma)
    expected = ((alpha / sigma).square().clamp(max=5) * (batch.x - x0).square()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "edm"])
def test_both_likelihoods_are_those_of_the_data(schedule: str) -> None:
    """For data N(0, s^2) and its perfect net (v = 0 at unit variance), bound and ODE give the log-density."""
    s = 1.0 if schedule == "cosine" else 0.5
    facts = DataSpec((2, 1, 1), levels=None, sigma_data=s)
    x = gaussian(300, facts)
    truth = torch.distributions.Normal(0, s).log_prob(x.x).flatten(1).sum(1)
    for bound, kind, tolerance in (("variational", "lower-bound", 0.3), ("ode", "ode-estimate", 0.01)):
        model = Ddpm({"net": Linear()}, facts, schedule=schedule, bound=bound)  # type: ignore[arg-type]
        found = model.log_likelihood(x.x, x.label, SampleRng(range(300), "likelihood"))
        assert found.kind == kind
        assert float((found.nats - truth).mean()) == pytest.approx(0, abs=tolerance)


def test_noise_that_comes_with_the_data_is_used() -> None:
    """The loss of a batch of pairs (noise, picture) uses the noise of the pairs."""
    model = perfect(predict="x")
    x, label = torch.zeros(4, 2, 1, 1), torch.zeros(4, dtype=torch.long)
    given = Batch(x, label, noise=torch.full_like(x, 3.0))
    losses = [float(model.loss("net", given, BatchRng(0, purpose, 0))[0]) for purpose in ("a", "a")]
    assert losses[0] == losses[1] != float(model.loss("net", Batch(x, label), BatchRng(0, "a", 0))[0])


def test_pictures_are_clipped_and_points_are_not() -> None:
    """With `clip` the samples of pictures are in [-1, 1]; points are not clipped."""
    wild = shaken(family("ddpm", FACTS["grey"], "mlp"), 0.5)
    rng = SampleRng(range(4), "sample")
    noise, label = rng.normal((4, 1, 8, 8)), torch.zeros(4, dtype=torch.long)
    assert wild.sample(noise, label, rng, sampler="ddim", steps=5, clip=True).x.abs().max() <= 1
    assert wild.sample(noise, label, rng, steps=5).x.abs().max() > 1
    points = shaken(family("ddpm", FACTS["points"]), 0.5)
    far = 3 * noise[:, :, :2, :1].reshape(4, 2, 1, 1)
    assert points.sample(far, label, rng, sampler="ddim", steps=5, clip=True).x.abs().max() > 1
