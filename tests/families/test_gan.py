"""GAN: facts of its losses, penalties, diagnosis and mode coverage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small import FACTS, batch, family, recipe, shaken
from torch import Tensor, nn

from genflow import build
from genflow.batch import Batch
from genflow.data.sources import densities
from genflow.errors import UsageError
from genflow.families.base import DIAGNOSE_EVERY
from genflow.families.gan import Gan, TrainingMonitor
from genflow.maths.rng import BatchRng, SampleRng
from genflow.specs import DataSpec
from genflow.training import loop
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.ema import with_average
from genflow.training.session import Session

GREY, POINTS = FACTS["grey"], FACTS["points"]
GAMES = ("relativistic", "non_saturating", "minimax")


def gan(facts: DataSpec = GREY, **options: object) -> Gan:
    return shaken(family("gan", facts, family={"latent": 4, **options}))


def rng(player: str = "discriminator") -> BatchRng:
    return BatchRng(0, f"loss/{player}", 0)


class Slope(nn.Module):
    """A score that is linear in x, with a known gradient: D(x) = w x, |grad D|^2 = |w|^2."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor, t: None, label: Tensor) -> Tensor:
        return (x.flatten(1) * self.w).sum(1, keepdim=True)


def scores(model: Gan, data: Batch, player: str) -> tuple[Tensor, Tensor]:
    """D(x) and D(G z) for the random draws of the player's loss."""
    draws = rng(player)
    label = data.label.masked_fill(draws.uniform((8,)) < model.forget, model.facts.classes)
    fake = model.generator(draws.normal((8, 4)), None, label)
    both = (model.discriminator(x, None, label).flatten().double() for x in (data.x, fake))  # double, for 1 - sigmoid
    return next(both), next(both)


@pytest.mark.parametrize("game", GAMES)
def test_the_losses_follow_their_formulas(game: str) -> None:
    """Without penalties both losses equal the textbook formulas of the scores."""
    model, data = gan(game=game, gamma=0), batch(GREY)
    real, fake = scores(model, data, "discriminator")
    against = {
        "relativistic": -(real - fake).sigmoid().log(),
        "non_saturating": -(real.sigmoid().log() + (1 - fake.sigmoid()).log()),
        "minimax": -(real.sigmoid().log() + (1 - fake.sigmoid()).log()),
    }
    loss, numbers = model.loss("discriminator", data, rng())
    torch.testing.assert_close(loss, against[game].mean().float())
    torch.testing.assert_close(numbers["gap"], (real - fake).mean().float())
    real, fake = scores(model, data, "generator")
    own = {
        "relativistic": -(fake - real).sigmoid().log(),
        "non_saturating": -fake.sigmoid().log(),
        "minimax": (1 - fake.sigmoid()).log(),
    }
    torch.testing.assert_close(model.loss("generator", data, rng("generator"))[0], own[game].mean().float())


def test_the_penalties_are_squared_gradients() -> None:
    """For a linear score R1 + R2 adds gamma |w|^2 to the loss, with gradient 2 gamma w."""
    data, gamma = batch(GREY), 0.3
    model, free = gan(gamma=gamma), gan(gamma=0)
    w = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 8
    model.discriminator, free.discriminator = Slope(w.clone()), Slope(w.clone())
    losses = [m.loss("discriminator", data, rng())[0] for m in (model, free)]
    torch.testing.assert_close(losses[0] - losses[1], gamma * w.square().sum())
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(model.discriminator.w.grad - free.discriminator.w.grad, 2 * gamma * w)


class Bowl(nn.Module):
    """The score |x|^2 / 2, whose gradient is x."""

    def forward(self, x: Tensor, t: None, label: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1, keepdim=True) / 2


@pytest.mark.parametrize("parts", [[8], [3, 5], [1, 1, 6]])
def test_one_row_in_four_has_the_penalties(parts: list[int]) -> None:
    """Rows 0 and 4 of the global batch have them, with four times the weight, however workers share the batch."""
    data, model = batch(GREY), gan(gamma=1.0, penalty_every=4)
    fakes: list[Tensor] = []
    model.generator.register_forward_hook(lambda module, args, out: fakes.append(out))
    model.discriminator, found, first = Bowl(), 0.0, 0
    for rows in parts:
        part = Batch(data.x[first : first + rows], data.label[first : first + rows])
        found += rows / 8 * float(model.loss("discriminator", part, rng().part(first))[1]["penalty"])
        first += rows
    fake = torch.cat(fakes)
    expected = [float(each[[0, 4]].flatten(1).square().sum(1).mean()) for each in (data.x, fake)]
    assert found == pytest.approx(sum(expected), rel=1e-5)


def test_a_difference_estimates_the_same_penalty() -> None:
    """For a linear score the mean over many directions is the exact penalty, up to sampling error."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 8
    model = gan(gamma=1.0, penalty="difference")
    model.discriminator = Slope(w)
    rows = 4000
    data = Batch(torch.zeros(rows, 1, 8, 8), torch.zeros(rows, dtype=torch.long))
    _, numbers = model.loss("discriminator", data, BatchRng(0, "loss", 0))
    assert float(numbers["penalty"]) == pytest.approx(2 * float(w.square().sum()), rel=0.05)


def test_gamma_falls_along_half_a_cosine() -> None:
    """gamma decreases from gamma to gamma / gamma_fall."""
    model = gan(gamma=1.0, gamma_fall=5.0)
    seen = []
    for position in (0.0, 0.5, 1.0):
        model.prepare(position)
        seen.append(model._gamma_now)
    assert seen == pytest.approx([1.0, 0.6, 0.2])


def test_only_the_relativistic_game_has_penalties_by_default() -> None:
    """The other two games have gamma = 0 by default; a given gamma is used in every game."""
    assert [gan(game=game).gamma > 0 for game in GAMES] == [True, False, False]
    assert gan(game="minimax", gamma=2.0).gamma == 2.0


def test_the_relativistic_score_has_no_bias() -> None:
    """The last bias exists only in games whose loss depends on it."""
    assert not [n for n, _ in gan().discriminator.named_parameters() if n == "leave.bias"]
    assert [n for n, _ in gan(game="minimax").discriminator.named_parameters() if n == "leave.bias"]


def test_labels_have_no_effect_at_forget_1() -> None:
    """With forget = 1 samples and losses are the same for every label."""
    model, noise = gan(forget=1), SampleRng(range(3), "sample").normal((3, 4))
    drawn = [model.sample(noise, torch.full((3,), label), SampleRng(range(3), "s")).x for label in (0, 7)]
    assert torch.equal(*drawn)
    data = batch(GREY)
    losses = [model.loss("generator", Batch(data.x, data.label * k), rng("generator"))[0] for k in (0, 1)]
    assert torch.equal(*losses)


def test_it_has_no_likelihood_and_no_encoder() -> None:
    """The likelihood is None, and `encode` raises an error in one line."""
    model, data = gan(), batch(GREY)
    assert model.log_likelihood(data.x, data.label, rng()) is None
    with pytest.raises(UsageError, match="GAN has no encoder"):
        model.encode(data.x, data.label, rng())


HEALTHY = {
    "loss/discriminator": 0.5, "loss/generator": 1.0, "penalty": 2.0, "gradient_norm/discriminator": 1.0,
    "gradient_norm/generator": 1.0, "gap": 1.0, "told_apart": 0.8,
}  # fmt: skip


def first_problem(monitor: TrainingMonitor, count: int, of: Callable[[int], dict[str, float]]) -> tuple[int, str]:
    """The first call that reports a problem, and its text; (count, "") if none does."""
    return next(((i, words) for i in range(count) if (words := monitor({**HEALTHY, **of(i)}))), (count, ""))


def test_a_healthy_run_has_no_problem() -> None:
    """Variation by a factor of five, single bursts, and a lead of the discriminator that does not grow are healthy."""
    noisy = lambda i: {name: value * 5 ** ((i * 37 % 20) / 10 - 1) for name, value in HEALTHY.items()}  # noqa: E731
    assert first_problem(TrainingMonitor(1000), 500, noisy) == (500, "")
    assert first_problem(TrainingMonitor(1000), 500, lambda i: {"penalty": 1e6} if i % 50 == 9 else {}) == (500, "")
    assert first_problem(TrainingMonitor(1000), 500, lambda i: {"told_apart": 1.0, "gap": 5.0}) == (500, "")


@pytest.mark.parametrize("name", list(TrainingMonitor.WATCHED))
def test_a_diverging_number_is_named(name: str) -> None:
    """A number of 100 times its usual size is reported at the third call; NaN is reported at once."""
    found, words = first_problem(TrainingMonitor(1000), 60, lambda i: {name: 1000.0} if i >= 50 else {})
    assert found == 52
    assert words.startswith(f"the game diverges: {TrainingMonitor.WATCHED[name]} is 1e+03")
    found, words = first_problem(TrainingMonitor(1000), 60, lambda i: {name: float("nan")} if i >= 50 else {})
    assert (found, words) == (50, f"the game diverges: {TrainingMonitor.WATCHED[name]} is not finite")


@pytest.mark.parametrize("gap", [lambda i: 1.0 + 0.1 * i, lambda i: 30.0], ids=["growing", "large"])
def test_dominance_is_reported_after_patience_steps(gap: Callable[[int], float]) -> None:
    """A gap that grows or is very large for `patience` steps is reported; with 0 it never is."""
    dominated = lambda i: {"told_apart": 1.0, "gap": gap(i)}  # noqa: E731
    found, words = first_problem(TrainingMonitor(600), 100, dominated)
    assert 600 / DIAGNOSE_EVERY <= found + 1 <= 600 / DIAGNOSE_EVERY + 5
    assert words.startswith("the discriminator dominates: for 600 steps it has separated 100 % of real rows")
    assert first_problem(TrainingMonitor(0), 100, dominated) == (100, "")


def test_the_state_of_the_monitor_is_in_the_checkpoint() -> None:
    """A resumed run reports a problem at the same call."""
    dominated = lambda i: {"told_apart": 1.0, "gap": 1.0 + 0.1 * i}  # noqa: E731
    whole, first, second = TrainingMonitor(600), TrainingMonitor(600), TrainingMonitor(600)
    assert first_problem(first, 20, dominated) == (20, "")
    second.load_state_dict(first.state_dict())
    found, _ = first_problem(second, 100, lambda i: dominated(20 + i))
    assert found + 20 == first_problem(whole, 100, dominated)[0]


def lost_by_the_generator(folder: Path, **train: Any) -> Callable[[], Any]:
    """A run in which the discriminator dominates: the generator's samples are far from the data."""
    settings = {"steps": 400, "batch": 8, "lr": 0.01, "optimizer": "adamw", "checkpoint_every": 30, "log_every": 5}
    chosen = recipe("gan", POINTS, family={"game": "minimax", "patience": 60}, train={**settings, **train})
    torch.manual_seed(0)
    model = build.family_of(chosen, POINTS)
    with torch.no_grad():
        model.generator.leave.bias.fill_(50.0)  # type: ignore[union-attr, operator]
    checkpoints = Checkpoints(folder)
    logged: list[dict[str, Any]] = []
    session = Session(load=checkpoints.newest, save=checkpoints.save, log=logged.append)

    def run() -> list[dict[str, Any]]:
        loop.fit(model, lambda step: batch(POINTS, step), session, chosen.train)
        return logged

    run.logged = logged  # type: ignore[attr-defined]
    return run


def test_a_dominating_discriminator_stops_the_run(tmp_path: Path) -> None:
    """In the minimax game the error names the problem and the step, and its hint proposes a setting."""
    with pytest.raises(loop.TrainingDiverged, match=r"the discriminator dominates: .* \(step \d+\)") as ended:
        lost_by_the_generator(tmp_path)()
    assert "train.lr" in ended.value.hint


def test_a_dominating_discriminator_can_cause_a_rollback(tmp_path: Path) -> None:
    """With on_trouble=rollback the run is repeated three times, each at half the learning rate."""
    run = lost_by_the_generator(tmp_path, on_trouble="rollback", decay=0.0, warmup=0)
    with pytest.raises(loop.TrainingDiverged, match="the discriminator dominates"):
        run()
    steps = {rate: [n["step"] for n in run.logged if n["lr"] == rate] for rate in (0.01, 0.005, 0.0025, 0.00125)}  # type: ignore[attr-defined]
    assert all(last - first >= 40 for first, *_, last in steps.values())  # each attempt has its full patience


def on_the_grid(game: str, steps: int) -> tuple[int, int]:
    """Train without labels on grid25; return the captured modes, and the modes nearest to at least 10 of 2,500 samples.

    The nets have Fourier features, so that the discriminator can separate a mode from its surroundings.
    """
    grid = densities.density("grid25")
    assert grid.modes is not None
    facts = DataSpec((2, 1, 1), levels=None, class_names=grid.class_names, scale=grid.scale)

    def data(step: int) -> Batch:
        points, labels = grid.sample(np.random.default_rng([0, step]), 128)
        return Batch(torch.from_numpy(points / np.float32(grid.scale))[:, :, None, None], torch.from_numpy(labels))

    chosen = recipe(
        "gan", facts, family={"game": game, "forget": 1, "patience": 0},
        train={"steps": steps, "batch": 128, "lr": 0.002, "optimizer": "adamw", "beta1": 0.0},
    ).replace(net={"kind": "mlp", "width": 64, "depth": 2, "waves": 6})  # fmt: skip
    torch.manual_seed(0)
    model = build.family_of(chosen, facts)
    average: dict[str, Tensor] = {}
    loop.fit(model, data, Session(), chosen.train, lambda step, weights: average.update(weights))
    rng = SampleRng(range(2500), "sample")
    noise, label = rng.normal((2500, *model.noise_shape)), torch.zeros(2500, dtype=torch.long)
    x = with_average(model, average, lambda: model.sample(noise, label, rng).x)
    distance = np.linalg.norm(x.flatten(1).numpy()[:, None] * grid.scale - grid.modes, axis=2)
    nearest = distance.argmin(1)
    captured = np.unique(nearest[distance.min(1) <= 3 * grid.sigma])
    return len(captured), int((np.bincount(nearest, minlength=25) >= 10).sum())


def test_the_minimax_game_collapses_and_the_default_does_not() -> None:
    """After 400 steps without labels minimax covers a few of 25 modes, and the default game covers most."""
    captured, near = on_the_grid("minimax", 400)
    assert captured <= 8  # measured: 4, near 9, or 16 on another machine; another seed 0, near 5
    assert near <= 18
    captured, near = on_the_grid("relativistic", 400)
    assert captured >= 12  # measured: 15, near 24; another seed 22, near 25; after 4,000 steps 24
    assert near >= 22


def test_a_compiled_exact_penalty_is_rejected() -> None:
    """The penalty differentiates the discriminator twice, which torch.compile cannot; without a penalty it can."""
    compiled = {"train": {"compile": True}}
    with pytest.raises(UsageError, match="compile cannot differentiate the discriminator twice"):
        recipe("gan", FACTS["grey"], **compiled)
    for options in ({"penalty": "difference"}, {"gamma": 0.0}, {"game": "minimax"}):
        assert recipe("gan", FACTS["grey"], family=options, **compiled).train.compile
