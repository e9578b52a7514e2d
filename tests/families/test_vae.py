"""The VAE: facts of its loss, its fitted prior, its bound and its flow prior."""

import math

import pytest
import torch
from support.small import FACTS, batch, family, shaken
from torch import nn

from genflow.errors import UsageError
from genflow.families.vae import Vae
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec


def vae(data: str = "grey", **options: object) -> Vae:
    return shaken(family("vae", FACTS[data], family={"latent": 4, **options}))


def rng(purpose: str = "loss") -> BatchRng:
    return BatchRng(0, purpose, 0)


@pytest.mark.parametrize("data", FACTS)
def test_the_loss_is_the_negative_elbo_per_number(data: str) -> None:
    """The loss is (KL - log P(x | z)) / D; both terms are logged in nats per sample."""
    model = vae(data)
    loss, numbers = model.loss("model", batch(FACTS[data]), rng())
    whole = numbers["kl"] + numbers["reconstruction"]
    torch.testing.assert_close(loss * FACTS[data].dims, whole)


def test_the_kl_is_the_closed_form() -> None:
    """The KL term equals that of torch.distributions."""
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
def test_draw_adds_the_noise_of_the_decoder(data: str) -> None:
    """draw=True adds logistic noise of standard deviation s pi / sqrt(3) for pictures, and normal noise for points."""
    model = vae(data)
    with torch.no_grad():
        model.model.get_parameter("log_scale").fill_(-4.0)
    seeds = range(400)
    noise = SampleRng(seeds, "sample").normal((400, *model.noise_shape))
    label = torch.full((400,), FACTS[data].classes)
    mean = model.sample(noise, label, SampleRng(seeds, "sample")).x
    drawn = model.sample(noise, label, SampleRng(seeds, "draw"), draw=True).x
    inside = (mean.abs() < 0.7) if data == "grey" else torch.ones_like(mean, dtype=torch.bool)
    spread = math.exp(-4) * (math.pi / math.sqrt(3) if data == "grey" else 1.0)
    assert float((drawn - mean)[inside].std()) == pytest.approx(spread, rel=0.1)


def test_temperature_scales_the_latent() -> None:
    """Half the temperature gives the same samples as half the noise."""
    model = vae()
    noise = SampleRng(range(3), "sample").normal((3, *model.noise_shape))
    label, none = torch.zeros(3, dtype=torch.long), SampleRng(range(3), "sample")
    cold = model.sample(noise, label, none, temperature=0.5).x
    torch.testing.assert_close(cold, model.sample(noise / 2, label, none).x)


# The prior that is fitted after training.


def finished(**options: object) -> Vae:
    model = vae(components=1, **options)
    model.model["encoder"].leave.weight.data.mul_(20)
    model.finish(lambda i: batch(FACTS["grey"], i, rows=256))
    return model


@torch.no_grad()
def drawn_codes(model: Vae, label: int, count: int = 1500) -> torch.Tensor:
    """The codes z that sampling passes to the decoder."""
    seen: list[torch.Tensor] = []
    hook = model.model["decoder"].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    rng = SampleRng(range(count), "sample")
    model.sample(rng.normal((count, *model.noise_shape)), torch.full((count,), label), rng)
    hook.remove()
    return seen[0]


def test_samples_have_the_codes_of_the_data() -> None:
    """With one Gaussian per class, sampled codes have the mean and covariance of the data's codes of that class."""
    model, stack = finished(), ([], [])
    for i in range(10):
        data = batch(FACTS["grey"], i, rows=256)
        mean, log_variance = model._posterior(data.x, torch.full((256,), 3))
        for kept, part in zip(stack, (mean, log_variance.exp()), strict=True):
            kept.append(part[data.label == 3])
    mean, variance = (torch.cat(part).detach() for part in stack)
    z = drawn_codes(model, 3)
    spread = torch.cov(mean.T) + variance.mean(0).diag()
    scale = spread.diag().sqrt()
    assert float(((z.mean(0) - mean.mean(0)) / scale).abs().max()) < 0.1
    assert float(((torch.cov(z.T) - spread) / (scale[:, None] * scale)).abs().max()) < 0.15


def test_before_it_is_fitted_z_is_normal() -> None:
    """Before the fit, and again when training continues, the codes are the noise itself."""
    fresh, model = vae(), finished()
    assert abs(float(drawn_codes(fresh, 3).std()) - 1) < 0.05
    before = drawn_codes(model, 3)
    assert abs(float(before.std()) - 1) > 0.1
    model.prepare(0.5)
    assert abs(float(drawn_codes(model, 3).std()) - 1) < 0.05


def test_the_fit_follows_from_weights_and_data() -> None:
    """The fit is reproducible to the bit and part of the state dictionary."""
    a, b = finished().state_dict(), finished().state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "mixture.fitted" in a
    plain = vae(prior="normal")
    assert not any(name.startswith("mixture") for name in plain.state_dict())
    assert plain.noise_shape == (4,)


def test_without_a_label_every_class_has_its_share() -> None:
    """The weights of the mixture for "no label" are the shares of the classes in the data."""
    prior = finished().mixture
    assert prior is not None
    own = prior.log_weight[10].exp()
    shares = torch.stack([own[10 + c] for c in range(10)])
    labels = torch.cat([batch(FACTS["grey"], i, rows=256).label for i in range(10)])[:2500]
    torch.testing.assert_close(shares, torch.bincount(labels, minlength=11)[:10] / 2500, rtol=0, atol=1e-5)
    assert float(prior.log_weight[3, 3]) == 0.0
    assert (prior.log_weight.exp().sum(1)[:10] - 1).abs().max() < 1e-5


def test_a_prior_that_is_too_large_is_rejected() -> None:
    """The hint names the option to change."""
    with pytest.raises(UsageError, match="too many for the prior") as refused:
        family("vae", FACTS["grey"], family={"latent": 128, "components": 1000})
    assert "family.prior=normal" in str(refused.value.hint)


# The bound of a model whose likelihood is known: x = W z + sigma eps.

LINEAR = DataSpec((5, 1, 1), levels=None)
W = torch.tensor([[1.0, 0.3], [0.5, -1.0], [0.2, 0.8], [-0.7, 0.1], [0.0, 0.6]])
SIGMA = 0.5


class Linear(nn.Module):
    """The decoder W z, or an encoder with the mean and variances of the posterior but without its correlation."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.decodes = decodes

    def forward(self, x: torch.Tensor, t: None = None, label: torch.Tensor | None = None) -> torch.Tensor:
        if self.decodes:
            return (x @ W.T)[:, :, None, None]
        precision = torch.eye(2) + W.T @ W / SIGMA**2
        mean = x.flatten(1) @ W @ torch.linalg.inv(precision) / SIGMA**2
        return torch.stack([mean + 0.2, (-0.5 - precision.diagonal().log()).expand_as(mean)], 1)


def linear(prior: bool = False, **options: object) -> Vae:
    model = Vae({"encoder": Linear(False), "decoder": Linear(True)}, LINEAR, latent=2, components=2, **options)
    with torch.no_grad():
        model.model.get_parameter("log_scale").fill_(math.log(SIGMA))
    if prior:
        assert model.mixture is not None
        model.mixture.log_weight.copy_(torch.tensor([[0.3, 0.7]]).log())
        model.mixture.mean.copy_(torch.tensor([[-1.0, 0.5], [0.8, 0.0]]))
        model.mixture.root.copy_(torch.tensor([[[0.5, 0.0], [0.2, 0.6]], [[0.9, 0.0], [-0.3, 0.4]]]))
        model.mixture.fitted.fill_(True)
    return model.eval()


def truth(model: Vae, x: torch.Tensor) -> torch.Tensor:
    """log p(x): each Gaussian of the prior, mapped by W, plus the noise of the decoder."""
    means, roots, log_weight = torch.zeros(1, 2), torch.eye(2)[None], torch.zeros(1)
    if model.mixture is not None and model.mixture.fitted:
        means, roots, log_weight = model.mixture.mean, model.mixture.root, model.mixture.log_weight[0]
    covariance = W @ roots @ roots.mT @ W.T + SIGMA**2 * torch.eye(5)
    parts = torch.distributions.MultivariateNormal(means @ W.T, covariance)
    return (parts.log_prob(x.flatten(1)[:, None]) + log_weight).logsumexp(1)


@pytest.mark.parametrize("prior", [False, True])
def test_the_bounds_converge_to_the_likelihood(prior: bool) -> None:
    """ELBO < IWAE_4 < IWAE_32 < log p on average, and IWAE_1000 is log p; under N(0, I) and under a mixture."""
    x = torch.randn(100, 5, 1, 1, generator=torch.Generator().manual_seed(3))
    label, found = torch.zeros(100, dtype=torch.long), {}
    for bound, k in (("elbo", 100), ("iwae", 4), ("iwae", 32), ("iwae", 1000)):
        model = linear(prior, bound=bound, posterior_samples=k)
        found[bound, k] = model.log_likelihood(x, label, SampleRng(range(100), "likelihood"))
    exact = truth(model, x)
    gap = [float((exact - one.nats).mean()) for one in found.values()]
    assert gap[0] > gap[1] > gap[2] > 0
    assert gap[0] > 0.2
    assert abs(gap[3]) < 0.03
    suffix = ", mixture prior" if prior else ""
    assert [one.method for one in found.values()] == [
        f"{name}{suffix}" for name in ("ELBO", "IWAE, k = 4", "IWAE, k = 32", "IWAE, k = 1000")
    ]
    assert all(one.kind == "lower-bound" for one in found.values())


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_the_standard_error_is_the_spread_of_another_try(bound: str) -> None:
    """The standard error of one estimate is the spread of 200 estimates with other seeds."""
    model = linear(bound=bound, posterior_samples=50)
    x = torch.full((200, 5, 1, 1), 0.4)
    found = model.log_likelihood(x, torch.zeros(200, dtype=torch.long), SampleRng(range(200), "likelihood"))
    assert float(found.stderr.mean()) == pytest.approx(float(found.nats.std()), rel=0.2)


def test_the_optimal_gaussian_scale_is_the_rms_error() -> None:
    """The loss is stationary where the scale is the root mean squared error, the optimal sigma of sigma-VAE."""
    model = vae("points", decoder="gaussian")
    log_scale, errors = model.model.get_parameter("log_scale"), []
    model.model["decoder"].register_forward_hook(lambda module, args, out: errors.append(out))
    part = batch(FACTS["points"])
    model.loss("model", part, rng())
    rms = (part.x - errors[-1]).square().mean((0, 2, 3), keepdim=True)[0].sqrt()
    with torch.no_grad():
        log_scale.copy_(rms.log())
    model.loss("model", part, rng())[0].backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("scale", ["shared", "pixel"])
def test_the_loss_on_latents_is_a_squared_error(scale: str) -> None:
    """With scale 1 the terms of the pictures are half the squared error and a constant; `min_scale` allows others."""
    data = batch(FACTS["latents"])
    z, label = torch.zeros(len(data.x), 4), torch.zeros(len(data.x), dtype=torch.long)
    model = vae("latents", scale=scale)
    mean, log_scale = model._output_distribution(z, label)
    with torch.no_grad():
        model.model.get_parameter("log_scale").fill_(-5.0)
    expected = -(0.5 * (data.x - mean).square() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(model._log_p(data.x, z, label), expected)
    assert bool((log_scale >= 0).all())
    free = vae("latents", scale="shared", min_scale=0.1)
    with torch.no_grad():
        free.model.get_parameter("log_scale").fill_(-5.0)
    assert float(free._output_distribution(z, label)[1].exp().min()) == pytest.approx(0.1)


@pytest.mark.parametrize("options", [{"decoder": "gaussian"}, {"scale": "pixel"}, {"prior": "normal"}])
def test_the_probabilities_of_the_levels_sum_to_one(options: dict[str, object]) -> None:
    """For every decoder the probabilities of a pixel's levels sum to 1."""
    model, z = vae(**options), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(17, dtype=torch.long)
    base = torch.zeros(17, 1, 8, 8)
    every = base.clone()
    every[:, 0, 2, 3] = (2 * torch.arange(17) + 1) / 17 - 1
    with torch.no_grad():
        all_nats = model._log_p(every, z.expand(17, 4), label)
        same = all_nats.logsumexp(0) - model._log_p(base[:1], z, label[:1])
        own = model._log_p(base[:1], z, label[:1]) - all_nats[8]  # level 8 is the pixel's own: x = 0
    assert float(own.abs()) < 1e-3
    mean, log_scale = model._output_distribution(z, label[:1])
    from genflow.maths.likelihood import discretized

    log_cdf = torch.special.log_ndtr if options.get("decoder") == "gaussian" else torch.nn.functional.logsigmoid
    scale = (log_scale + 0 * mean)[0, 0, 2, 3]
    alone = discretized(log_cdf, torch.zeros(1), mean[0, 0, 2, 3], scale, 17)
    assert float((same + alone).detach()) == pytest.approx(0, abs=1e-3)


# The flow prior.


def test_the_flow_and_the_model_are_trained_separately() -> None:
    """Each loss has gradients only for its player, and samples use the flow."""
    model = vae(prior="flow")
    assert model.players == ("model", "prior")
    assert model.prior is not None
    for player, other in (("model", "prior"), ("prior", "model")):
        model.zero_grad()
        model.loss(player, batch(FACTS["grey"]), rng())[0].backward()
        assert any(p.grad is not None and p.grad.any() for p in getattr(model, player).parameters())
        assert not any(p.grad is not None and p.grad.any() for p in getattr(model, other).parameters())
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    samples = model.sample(noise, torch.tensor([1, 2]), SampleRng([1, 2], "sample"))
    assert samples.nfe == 21
    plain = model._output_distribution(noise, torch.tensor([1, 2]))[0].clamp(-1, 1)
    assert not torch.equal(samples.x, plain)


def test_a_flow_with_zero_velocity_is_the_normal_prior() -> None:
    """With v = 0 codes are the noise; the bound is that of N(0, I), and its kind is an ODE estimate."""
    model, normal = vae(prior="flow", posterior_samples=50), vae(prior="normal", posterior_samples=50)
    assert model.prior is not None
    normal.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for p in model.prior.parameters():
            p.zero_()
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1, 2])
    moved = model.sample(noise, label, SampleRng([1, 2], "sample")).x
    torch.testing.assert_close(moved, normal.sample(noise, label, SampleRng([1, 2], "sample")).x)
    part = batch(FACTS["grey"], rows=4)
    seeds = range(4)
    found, exact = (one.log_likelihood(part.x, part.label, SampleRng(seeds, "bound")) for one in (model, normal))
    assert ((found.nats - exact.nats).abs() < 4 * (found.stderr + exact.stderr)).all()
    assert (found.kind, exact.kind) == ("ode-estimate", "lower-bound")
    assert found.method == "ELBO, flow prior by midpoint, 20 steps"
    with pytest.raises(UsageError, match="a prior whose density is exact"):
        vae(prior="flow", bound="iwae")
