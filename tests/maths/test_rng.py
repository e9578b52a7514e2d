"""Draws are a function of seed, purpose, step and sample, and of nothing else."""

import pytest
import torch

from genflow.maths.rng import BatchRng, SampleRng, key


def test_keys_are_the_same_on_every_machine() -> None:
    """The key of given parts never changes, and the parts are separated."""
    assert key(0, "order", 3) == 554563163506081016
    assert key("ab", "c") != key("a", "bc")
    assert 0 <= key(-1) < 2**63


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_workers_shares_put_together_are_the_global_batch(draw: str, world: int) -> None:
    """Each worker's rows are rows of the same global draws, in every call."""
    total = 10
    whole = BatchRng(5, "loss", 3)
    bounds = [total * r // world for r in range(world + 1)]
    parts = [BatchRng(5, "loss", 3, start=a) for a in bounds[:-1]]
    for shape in ((2, 3), (), (1, 4, 4)):
        together = [getattr(p, draw)((b - a, *shape)) for p, a, b in zip(parts, bounds, bounds[1:], strict=False)]
        assert torch.equal(torch.cat(together), getattr(whole, draw)((total, *shape)))


def test_another_step_purpose_or_seed_gives_other_draws() -> None:
    """Draws differ between seeds, steps, purposes and calls."""
    draws = [
        BatchRng(*of).normal((4, 2)).flatten()
        for of in [(0, "loss", 0), (0, "loss", 1), (0, "order", 0), (1, "loss", 0)]
    ]
    assert len({tuple(d.tolist()) for d in draws}) == 4
    rng = BatchRng(0, "loss", 0)
    assert not torch.equal(rng.normal((4, 2)), rng.normal((4, 2)))


@pytest.mark.parametrize("shape", [(), (3,), (1, 8, 8), (3, 5, 7)])
def test_a_samples_draws_do_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    """Seed 7 gives the same draws alone, in a batch of three, and in another order."""
    alone, batch, turned = SampleRng([7], "sample"), SampleRng([3, 7, 1], "sample"), SampleRng([7, 1, 3], "sample")
    for draw in ("normal", "uniform", "normal"):
        one = getattr(alone, draw)((1, *shape))[0]
        assert torch.equal(one, getattr(batch, draw)((3, *shape))[1])
        assert torch.equal(one, getattr(turned, draw)((3, *shape))[0])


def test_samples_of_neighbouring_seeds_are_uncorrelated() -> None:
    """Seeds 0..199 give independent standard normals."""
    draws = SampleRng(range(200), "sample").normal((200, 500))
    correlation = torch.corrcoef(draws) - torch.eye(200)
    assert correlation.abs().max() < 0.25  # 6 standard deviations would be 0.27
    assert abs(float(draws.mean())) < 0.01
    assert float(draws.std()) == pytest.approx(1, abs=0.01)


def test_many_samples_are_all_different() -> None:
    """200,000 seeds give 200,000 different draws; with 32 bits of state about five pairs would be equal."""
    first = torch.cat([SampleRng(range(a, a + 1000), "sample").uniform((1000, 3)) for a in range(0, 200_000, 1000)])
    assert len(torch.unique(first, dim=0)) == 200_000


def test_a_samples_draws_are_the_same_on_every_machine() -> None:
    """The draws of seed 0 equal recorded values, so samples do not depend on the processor."""
    known = [0.18592584133148193, 0.2930504083633423, 0.9674839377403259, 0.7792320847511292]
    assert SampleRng([0], "sample").uniform((1, 4))[0].tolist() == known


def test_draws_for_another_number_of_samples_are_refused() -> None:
    """The number of rows must equal the number of generators."""
    with pytest.raises(ValueError, match="3 samples requested from 2"):
        SampleRng([0, 1], "sample").normal((3, 2))
