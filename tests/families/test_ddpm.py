"""DDPM's own facts, with the perfect net of a mixture."""

import pytest
import torch
from oracle import TWO, Mixture
from small import FACTS, family, shaken
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.facts import Facts
from genflow.families.ddpm import Ddpm
from genflow.maths.seeds import BatchRng, SampleRng

POINTS = Facts((2, 1, 1), levels=None)


class Perfect(nn.Module):
    """The best net for a mixture; it remembers the times that it was told."""

    def __init__(self, mixture: Mixture, T: int) -> None:
        super().__init__()
        self.mixture, self.T, self.told = mixture, T, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.told = t
        answer = torch.empty_like(x)
        for time in t.unique():
            at = (float(time) * self.T / 1000 + 1) / self.T
            alpha, sigma = self.family.path.alpha(at), self.family.path.sigma(at)
            answer[t == time] = self.mixture.predict(self.family.predict, x[t == time], alpha, sigma).float()
        return answer


def perfect(**options: object) -> Ddpm:
    net = Perfect(TWO, int(options.get("T", 1000)))  # type: ignore[call-overload]
    model = Ddpm({"net": net}, POINTS, **options)  # type: ignore[arg-type]
    object.__setattr__(net, "family", model)  # not a submodule of its own submodule
    return model


@pytest.mark.parametrize("predict", ["eps", "x", "v"])
def test_every_target_samples_the_same_data(predict: str) -> None:
    """A perfect net that predicts eps, x or v gives the same samples from the same noise."""
    rng = SampleRng(range(8), "sample")
    noise, label = rng.normal((8, 2, 1, 1)), torch.zeros(8, dtype=torch.long)
    drawn = perfect(schedule="linear", predict=predict).sample(noise, label, rng, sampler="ddim", steps=20).x
    reference = perfect(schedule="linear", predict="v").sample(noise, label, rng, sampler="ddim", steps=20).x
    torch.testing.assert_close(drawn, reference, rtol=0, atol=1e-3)
    assert float(TWO.log_density(drawn).mean()) > -1


@pytest.mark.parametrize("T", [10, 100, 1000])
def test_training_looks_at_every_level_alike(T: int) -> None:
    """Levels are uniform in 0..T-1, and the net is told 1000 k / T."""
    model = perfect(T=T)
    rows = 2000
    batch = Batch(TWO.draw(rows).float().reshape(rows, 2, 1, 1), torch.zeros(rows, dtype=torch.long))
    loss, _ = model.loss("net", batch, BatchRng(0, "loss", 0, total=rows))
    k = model.net.told * T / 1000
    torch.testing.assert_close(k, k.round())
    assert k.min() >= 0
    assert k.max() <= T - 1
    assert float(k.mean()) == pytest.approx((T - 1) / 2, rel=0.05)
    assert float(loss) < 1  # the variance that is left; answering 0 would cost about 1


def test_noise_that_comes_with_the_data_is_used() -> None:
    """A batch of pairs (noise, image) is trained on those pairs."""
    model = perfect(predict="x")
    x, label = torch.zeros(4, 2, 1, 1), torch.zeros(4, dtype=torch.long)
    given = Batch(x, label, noise=torch.full_like(x, 3.0))
    losses = [float(model.loss("net", given, BatchRng(0, purpose, 0, total=4))[0]) for purpose in ("a", "a")]
    assert losses[0] == losses[1] != float(model.loss("net", Batch(x, label), BatchRng(0, "a", 0, total=4))[0])


def test_pictures_are_clipped_and_points_are_not() -> None:
    """The guessed data stays in [-1, 1] for pictures, unless asked otherwise."""
    wild = shaken(family("ddpm", FACTS["grey"], "mlp"), 0.5)
    rng = SampleRng(range(4), "sample")
    noise, label = rng.normal((4, 1, 8, 8)), torch.zeros(4, dtype=torch.long)
    assert wild.sample(noise, label, rng, sampler="ddim", steps=5, clip=True).x.abs().max() <= 1
    assert wild.sample(noise, label, rng, steps=5).x.abs().max() > 1
    points = shaken(family("ddpm", FACTS["points"]), 0.5)
    far = 3 * noise[:, :, :2, :1].reshape(4, 2, 1, 1)
    assert points.sample(far, label, rng, sampler="ddim", steps=5, clip=True).x.abs().max() > 1
