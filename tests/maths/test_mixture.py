"""The Gaussian mixture that serves as a prior: its density, its draws, and its fit."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture

from genflow.maths.mixture import Mixture, fit

WEIGHT = torch.tensor([0.2, 0.5, 0.3])
MEAN = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]])
ROOT = torch.tensor([[[0.4, 0.0], [0.1, 0.3]], [[0.5, 0.0], [-0.3, 0.2]], [[0.3, 0.0], [0.0, 0.6]]])


def made(label_weights: list[list[float]]) -> Mixture:
    mixture = Mixture(len(label_weights), 3, 2)
    mixture.log_weight.copy_(torch.tensor(label_weights).log())
    mixture.mean.copy_(MEAN)
    mixture.root.copy_(ROOT)
    return mixture


def points(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    eps, choice = torch.randn(count, 2, generator=generator), torch.rand(count, generator=generator)
    return made([WEIGHT.tolist()]).draw(eps, choice, torch.zeros(count, dtype=torch.long))


def fitted(x: torch.Tensor, variance: torch.Tensor | None = None, components: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return fit(x, torch.zeros_like(x) if variance is None else variance, components, generator)


def test_the_density_is_the_mixtures() -> None:
    """log_density equals torch.distributions, with separate weights for each label."""
    mixture, z = made([WEIGHT.tolist(), [1.0, 0.0, 0.0]]), torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    parts = torch.distributions.MultivariateNormal(MEAN, scale_tril=ROOT)
    truth = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHT), parts)
    label = torch.tensor([0, 1, 0, 1, 0, 0])
    expected = torch.where(label == 0, truth.log_prob(z), parts.log_prob(z[:, None])[:, 0])
    torch.testing.assert_close(mixture.log_density(z, label), expected.double(), rtol=1e-5, atol=1e-5)


def test_components_are_drawn_in_proportion_to_their_weights() -> None:
    """Equally spaced choices select components in proportion; a component of weight 0 is never selected."""
    mixture = made([WEIGHT.tolist(), [0.0, 1.0, 0.0]])
    choice = torch.arange(1000) / 1000
    for label, share in ((0, WEIGHT), (1, torch.tensor([0.0, 1.0, 0.0]))):
        z = mixture.draw(torch.zeros(1000, 2), choice, torch.full((1000,), label))
        found = (torch.cdist(z, MEAN) < 1e-6).float().mean(0)
        torch.testing.assert_close(found, share, rtol=0, atol=1.5e-3)


def test_the_fit_finds_the_mixture() -> None:
    """The fit to 6,000 points recovers the weights, means and covariances."""
    w, mean, root = fitted(points(6000))
    order = torch.cdist(MEAN.double(), mean).argmin(1)
    torch.testing.assert_close(w[order].float(), WEIGHT, rtol=0, atol=0.02)
    torch.testing.assert_close(mean[order].float(), MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close((root @ root.mT)[order].float(), ROOT @ ROOT.mT, rtol=0, atol=0.03)


def test_the_fit_is_as_good_as_scikit_learns() -> None:
    """The mean log-density of held-out points equals that of scikit-learn's GaussianMixture."""
    train, held_out = points(3000), points(3000, seed=1)
    w, mean, root = fitted(train)
    mixture = Mixture(1, 3, 2)
    for buffer, value in ((mixture.log_weight, w.log()[None]), (mixture.mean, mean), (mixture.root, root)):
        buffer.copy_(value)
    ours = float(mixture.log_density(held_out, torch.zeros(3000, dtype=torch.long)).mean())
    theirs = GaussianMixture(3, random_state=0).fit(train.numpy()).score(held_out.numpy())
    assert ours == pytest.approx(theirs, abs=0.01)


def test_the_variance_of_the_points_enters_the_covariance() -> None:
    """A single component has the mean of the means, and their covariance plus the mean variance."""
    generator = torch.Generator().manual_seed(0)
    m, v = torch.randn(50, 3, generator=generator), torch.rand(50, 3, generator=generator)
    w, mean, root = fitted(m, v, components=1)
    assert w.tolist() == [1.0]
    torch.testing.assert_close(mean[0].float(), m.mean(0))
    expected = torch.cov(m.T, correction=0) + torch.diag(v.mean(0))
    torch.testing.assert_close((root @ root.mT)[0].float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_few_or_equal_points_can_be_fitted(rows: int) -> None:
    """Fewer components are fitted, and each covariance keeps full rank."""
    for x in (torch.zeros(rows, 4), torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))):
        w, mean, root = fitted(x, components=20)
        assert len(w) == max(1, rows // 8)
        assert float(w.sum()) == pytest.approx(1)
        assert mean.isfinite().all()
        assert (root.diagonal(dim1=1, dim2=2) >= math.sqrt(0.99e-6)).all()
