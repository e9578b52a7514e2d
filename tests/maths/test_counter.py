"""The counter-based generator: the same numbers on every device and for every share of rows, and good statistics."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from genflow.maths import counter
from genflow.maths.counter import Counter
from genflow.maths.rng import BatchRng
from genflow.system import source_hash

CPU = torch.device("cpu")
SHAPES = [(), (1,), (2,), (3,), (4,), (5,), (1, 28, 28), (3, 7, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_devices_have_the_same_numbers(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniforms are equal to the bit. Normals differ by less than 8 units in the last place, and mostly by none."""

    def drawn() -> list[Tensor]:
        rng = BatchRng(3, "loss", 7, start=2)
        return [getattr(rng, kind)((5, *shape)) for kind in ("normal", "uniform", "normal", "uniform")]

    host = drawn()
    monkeypatch.setattr(counter, "_on_host", lambda device: False)
    device = drawn()
    assert torch.equal(host[1], device[1])
    assert torch.equal(host[3], device[3])
    for one, other in ((host[0], device[0]), (host[2], device[2])):
        steps = (one.view(torch.int32).long() - other.view(torch.int32).long()).abs()
        assert int(steps.max()) < 8
        assert float(steps.double().mean()) < 1


@pytest.mark.parametrize("on_host", [True, False])
def test_pieces_of_a_draw_do_not_change_it(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw is the same if few words are computed at once: blocks of rows, and pieces of a row."""
    monkeypatch.setattr(counter, "_on_host", lambda device: on_host)
    draw = lambda: [Counter(9).draw(range(1, 6), 2, 31, CPU, normal=normal) for normal in (True, False)]  # noqa: E731
    expected = draw()
    for words in (7, 16, 40):
        monkeypatch.setattr(counter, "HOST_WORDS", words)
        monkeypatch.setattr(counter, "DEVICE_WORDS", words)
        for found, known in zip(draw(), expected, strict=True):
            torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-6)  # another vector width rounds differently


def test_the_numbers_never_change() -> None:
    """Known uniforms and normals, and SplitMix64's published words for the key 0 and the counters 1, 2, 3."""
    offsets = np.arange(1, 4, dtype=np.uint64) * np.uint64(counter.GAMMA)
    assert counter._words(0, 0, 1, offsets)[0].tolist() == [
        16294208416658607535, 7960286522194355700, 487617019471545679,
    ]  # fmt: skip
    rng = BatchRng(0, "loss", 0)
    assert rng.uniform((1, 3)).tolist() == [[0.505473196506500244140625, 0.26007050275802612, 0.47345876693725586]]
    torch.testing.assert_close(rng.normal((1, 3)), torch.tensor([[0.0275334045, 0.1406474560, 0.1455184370]]))


def test_a_row_has_its_draws_whatever_is_drawn_with_it() -> None:
    """A row alone, at the end of a batch, and in a part has equal draws: small ones, large ones, on another device."""

    def drawn(rng: BatchRng, rows: int) -> list[Tensor]:
        shapes = [(1, 6, 6), (), (3,), (1, 6, 6), *[()] * 9]
        other = rng.on("cpu")
        return [other.normal((rows, *s)) if n % 2 else rng.uniform((rows, *s)) for n, s in enumerate(shapes)]

    whole = drawn(BatchRng(1, "loss", 4), 9)
    for rng, rows, at in (
        (BatchRng(1, "loss", 4, start=5), 1, 5), (BatchRng(1, "loss", 4, start=3), 6, 3),
        (BatchRng(1, "loss", 4, start=2).part(2), 2, 4),
    ):  # fmt: skip
        for own, all_rows in zip(drawn(rng, rows), whole, strict=True):
            assert torch.equal(own, all_rows[at : at + rows])


def test_moments_and_distribution() -> None:
    """Mean, variance, skewness and kurtosis of normals; Kolmogorov and Smirnov's test, and the range of both kinds."""
    rng, shape = BatchRng(11, "loss/net", 123), (64, 1, 64, 64)
    normal, uniform = rng.normal(shape).double().flatten(), rng.uniform(shape).double().flatten()
    n = len(normal)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(normal.pow(power).mean()) - mean) < 4 * math.sqrt(variance / n)
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert float(normal.abs().max()) < 5.78
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1


@pytest.mark.parametrize("along", ["rows", "draws", "steps", "purposes", "seeds"])
def test_sequences_are_independent(along: str) -> None:
    """Of 128 rows, draws, steps, purposes or seeds no two are correlated, and neighbours fill the square evenly."""
    size, rng = (1, 4096), BatchRng(5, "loss", 9)
    made = {
        "rows": lambda n: BatchRng(5, "loss", 9, start=n), "draws": lambda n: rng,
        "steps": lambda n: BatchRng(5, "loss", n),
        "purposes": lambda n: BatchRng(5, f"loss/{n}", 9), "seeds": lambda n: BatchRng(n, "loss", 9),
    }[along]  # fmt: skip
    drawn = np.stack([made(n).uniform(size).numpy()[0] for n in range(128)]).astype(float)
    correlation = np.corrcoef(drawn) - np.eye(128)
    assert np.abs(correlation).max() * math.sqrt(size[1]) < 5.2  # standard deviations; of 8,128 pairs
    cells = np.histogram2d(drawn[:-1].ravel(), drawn[1:].ravel(), bins=64, range=[[0, 1]] * 2)[0]
    expected = cells.sum() / cells.size
    assert stats.chi2.sf(((cells - expected) ** 2 / expected).sum(), cells.size - 1) > 1e-3


def test_one_bit_of_the_counter_changes_half_of_a_word() -> None:
    """Each of the 64 bits of the counter changes each of the 64 bits of the word in half of all cases."""
    draws, none = np.random.default_rng(0), np.zeros(1, np.uint64)
    at = draws.integers(0, 2**64, 4000, dtype=np.uint64)
    word = counter._mix_on_host(at * np.uint64(counter.GAMMA) + none, np.uint64(77))
    for bit in range(64):
        other = counter._mix_on_host((at ^ np.uint64(1 << bit)) * np.uint64(counter.GAMMA), np.uint64(77))
        changed = np.unpackbits((word ^ other).view(np.uint8).reshape(-1, 8), axis=1)
        assert np.abs(changed.mean(0) - 0.5).max() < 5.5 * 0.5 / math.sqrt(len(at))


def test_no_two_rows_are_equal() -> None:
    """40,000 rows of 20 steps and of 2 purposes: all pairs of numbers differ, so no row is another one shifted."""
    of = itertools.product(("loss/a", "loss/b"), range(20))
    words = torch.cat([BatchRng(0, purpose, step).uniform((1000, 6)) for purpose, step in of]).reshape(-1, 2)
    assert len(torch.unique(words, dim=0)) == len(words)


def test_a_counter_refuses_what_it_cannot_count() -> None:
    """Numbers that would repeat those of another row or draw are an error."""
    for rows, draw, count in ((range(1 << 24, (1 << 24) + 1), 0, 1), (range(1), 1 << 14, 1), (range(1), 0, 1 << 28)):
        with pytest.raises(ValueError, match="bits"):
            Counter(0).draw(rows, draw, count, CPU, normal=True)


def test_another_generator_is_another_run() -> None:
    """A checkpoint never continues with other numbers: the generator's file is part of the address of a run."""
    assert {"genflow/maths/counter.py", "genflow/maths/rng.py"} <= set(source_hash.imported("genflow/training/loop.py"))
