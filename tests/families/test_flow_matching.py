"""Flow matching: facts of its loss, likelihood and guidance, with the perfect velocity of a mixture."""

import dataclasses
import math

import pytest
import torch
from support.oracle import TWO, Mixture
from support.small import FACTS, family, shaken
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Family, Samples
from genflow.families.flow_matching import FlowMatching
from genflow.maths.paths import spaced_times
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec, TextSpec

SCALED = DataSpec((2, 1, 1), levels=None, scale=3.0)
NO_LABEL = torch.zeros(300, dtype=torch.long)


class Perfect(nn.Module):
    """The best net for a mixture; it records its times."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture, self.times = mixture, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.times = t / 1000
        u = self.times.double()[:, None, None, None]
        flat, m, s = x.double().flatten(1), self.mixture.means, self.mixture.std
        a, b = (1 - u).flatten(1), u.flatten(1)
        v = (a * s) ** 2 + b**2
        parts = self.mixture.weights.log() - (flat[:, None] - a[..., None] * m).square().sum(-1) / (2 * v)
        each = m + (a * s**2 / v)[..., None] * (flat[:, None] - a[..., None] * m)
        x0 = (parts.softmax(1)[..., None] * each).sum(1).reshape(x.shape)
        return ((x - x0) / u).to(x.dtype)


def perfect(**options: object) -> FlowMatching:
    return FlowMatching({"net": Perfect(TWO)}, SCALED, **options)  # type: ignore[arg-type]


def test_the_log_likelihood_is_the_true_density_of_the_points() -> None:
    """In the raw coordinates of the points it is log p(x) - D log scale."""
    x = TWO.draw(300).float().reshape(300, 2, 1, 1)
    found = perfect().log_likelihood(x, NO_LABEL, SampleRng(range(300), "likelihood"))
    truth = TWO.log_density(x) - 2 * math.log(3.0)
    torch.testing.assert_close(found.nats, truth, rtol=0, atol=0.01, check_dtype=False)
    assert found.kind == "ode-estimate"
    assert found.nfe == 3 * 80  # points have four times as many steps


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (DataSpec((3, 64, 64), 256), 0.0),
        (DataSpec((8, 8, 8), None, autoencoder="ae"), 0.0),
        (DataSpec((4, 16, 16), None, autoencoder="ae"), math.log(2)),
        (DataSpec((16, 16, 16), None, autoencoder="ae"), math.log(3)),
    ],
)
def test_large_latents_are_trained_at_more_noise(facts: DataSpec, expected: float) -> None:
    """The default shift is D / 512, within 1 to 3; a number in the recipe wins."""
    assert FlowMatching({"net": nn.Identity()}, facts).logit_mean == pytest.approx(expected)
    assert FlowMatching({"net": nn.Identity()}, facts, logit_mean=0.2).logit_mean == 0.2


@pytest.mark.parametrize("sampler", ["euler", "ab2", "ddpm"])
def test_a_perfect_velocity_draws_the_mixture(sampler: str) -> None:
    """Deterministic and stochastic samplers give samples of the mixture on the straight path."""
    rng = SampleRng(range(300), "sample")
    x = perfect().sample(rng.normal((300, 2, 1, 1)), NO_LABEL, rng, sampler=sampler, steps=100).x.flatten(1)
    share = (torch.cdist(x.double(), TWO.means).argmin(1) == 0).float().mean()
    assert float(share) == pytest.approx(0.7, abs=0.08)
    assert float(TWO.log_density(x).mean()) == pytest.approx(float(TWO.log_density(TWO.draw(3000)).mean()), abs=0.2)


def test_the_perfect_velocity_has_the_smallest_loss() -> None:
    """The loss of another velocity is larger by its squared distance."""
    batch = Batch(TWO.draw(300).float().reshape(300, 2, 1, 1), NO_LABEL)
    best = perfect()
    loss, _ = best.loss("net", batch, BatchRng(0, "loss", 0))
    worse = perfect()
    worse.net.register_forward_hook(lambda module, args, out: out + 1.0)
    shifted, _ = worse.loss("net", batch, BatchRng(0, "loss", 0))
    assert float(shifted - loss) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_training_times_follow_their_density(density: str) -> None:
    """The share of times outside 0.1..0.9 is right; a tenth of the logit-normal's times are uniform."""
    rows = 5000
    model = perfect(density=density)
    x = torch.zeros(rows, 2, 1, 1)
    model.loss("net", Batch(x, torch.zeros(rows, dtype=torch.long)), BatchRng(0, "loss", 0))
    outside = ((model.net.times < 0.1) | (model.net.times > 0.9)).float().mean()
    peaked = 0.1 * 0.2 + 0.9 * 2 * float(torch.special.ndtr(torch.tensor(-math.log(9.0))))  # |logit t| > log 9
    expected = 0.2 if density == "uniform" else peaked
    assert float(outside) == pytest.approx(expected, abs=0.02)


def test_noise_that_comes_with_the_data_is_used() -> None:
    """For pairs (noise, picture) x_t is on the line between them, as reflow requires."""
    seen: list[Tensor] = []
    model = perfect()
    model.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.zeros(4, 2, 1, 1)
    model.loss("net", Batch(x, NO_LABEL[:4], noise=torch.full_like(x, 3.0)), BatchRng(0, "loss", 0))
    torch.testing.assert_close(seen[0], 3 * model.net.times[:, None, None, None].expand_as(x))


@pytest.mark.parametrize(("low", "high", "nfe"), [(0.0, 1.0, 20), (0.25, 0.75, 15), (0.0, 0.5, 15), (1.0, 1.0, 11)])
def test_guidance_applies_only_in_its_interval(low: float, high: float, nfe: int) -> None:
    """Each of ten Euler steps takes a second evaluation if it is inside the interval."""
    model = family("flow_matching", FACTS["grey"], "mlp")
    rng = SampleRng([1, 2], "sample")
    noise = rng.normal((2, 1, 8, 8))
    options = {"guidance": 2.0, "guidance_low": low, "guidance_high": high}
    found = model.sample(noise, torch.tensor([0, 1]), rng, sampler="euler", steps=10, **options)
    assert found.nfe == nfe


@pytest.mark.parametrize(("kind", "spacing"), [("flow_matching", "uniform"), ("ddpm", "uniform"), ("ddpm", "karras")])
def test_sampling_times_are_shifted_towards_noise(kind: str, spacing: str) -> None:
    """Each time t of a spacing becomes s t/(1 + (s - 1) t); the shift 1 changes no bit."""
    model, seen = family(kind, FACTS["grey"], "mlp"), list[list[float]]()
    model.net.register_forward_hook(lambda net, args, out: seen[-1].append(float(args[1][0]) / 1000))

    def draw(**options: float) -> Tensor:
        seen.append([])
        rng = SampleRng([1, 2], "sample")
        x = rng.normal((2, 1, 8, 8))
        return model.sample(x, torch.tensor([0, 1]), rng, sampler="euler", spacing=spacing, steps=5, **options).x

    assert torch.equal(draw(), draw(shift=1.0))
    draw(shift=3.0)
    times = spaced_times(model.path, 5, spacing)[:-1]
    assert seen[0] == pytest.approx([model.path.net_time(t) / 1000 for t in times], abs=1e-6)
    assert seen[2] == pytest.approx([model.path.net_time(3 * t / (1 + 2 * t)) / 1000 for t in times], abs=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "edm"])
@pytest.mark.parametrize("sampler", ["euler", "rk45"])
def test_autoguidance_uses_a_weaker_run(schedule: str, sampler: str) -> None:
    """A diffusion run changes the samples of a flow, and evaluations of both are counted.

    Weight 1 changes nothing, and neither does a run that guides itself.
    """
    model = family("flow_matching", FACTS["colour"], "mlp")
    own = len(list(model.parameters()))
    other = shaken(family("ddpm", FACTS["colour"], "mlp", family={"schedule": schedule}))

    def draw(guide: Family | None, weight: float) -> Samples:
        model.weaker = ()
        if guide:
            model.guided_by(guide)
        rng = SampleRng([1, 2], "sample")
        noise = rng.normal((2, 3, 8, 8))
        return model.sample(noise, torch.tensor([0, 0]), rng, sampler=sampler, steps=4, tolerance=1e-3, guidance=weight)

    plain = draw(None, 1.0)
    assert torch.equal(draw(other, 1.0).x, plain.x)
    torch.testing.assert_close(draw(model, 3.0).x, plain.x, rtol=1e-3, atol=1e-3)
    led = draw(other, 2.0)
    assert not torch.allclose(led.x, plain.x, atol=1e-2)
    assert sampler == "rk45" or led.nfe == 2 * plain.nfe
    assert len(list(model.parameters())) == own  # the guide is not a submodule


def test_a_guide_that_does_not_fit_is_rejected() -> None:
    """A guide must be on a Gaussian path and on data of the same shape; a VAE cannot be guided."""
    model = family("flow_matching", FACTS["grey"], "mlp")
    for weak in (family("vae", FACTS["grey"]), family("ddpm", FACTS["colour"], "mlp")):
        with pytest.raises(UsageError, match="cannot guide"):
            model.guided_by(weak)
    own = FACTS["captioned"]
    other = dataclasses.replace(own, text=TextSpec(6, 5, 4, "other"))
    with pytest.raises(UsageError, match=r"captions of the guiding run \(other\) are not those of this run \(sm"):
        family("flow_matching", own, "mlp").guided_by(family("flow_matching", other, "mlp"))
    with pytest.raises(UsageError, match="cannot be guided by another run"):
        family("vae", FACTS["grey"]).guided_by(model)
