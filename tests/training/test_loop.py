"""The training loop: a killed run resumes to the same bits, and a failure is raised before the weights change."""

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.small import FACTS, batch, family, recipe
from support.two_workers import two_workers
from torch import Tensor

from genflow import build, families
from genflow.batch import Batch
from genflow.families.base import Family
from genflow.recipe.schema import Train
from genflow.training import clock, loop
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.ema import with_average
from genflow.training.optim import AdamW, optimizers_of
from genflow.training.session import Session

POINTS = FACTS["points"]
QUICK = {"steps": 6, "batch": 8, "checkpoint_every": 2, "log_every": 1, "warmup": 2}


class KilledError(Exception):
    """Raised by a test's batches where a process would be killed."""


def start(kind: str = "flow_matching", facts: Any = POINTS, **train: object) -> tuple[Family, Train]:
    chosen = recipe(kind, facts, train={**QUICK, **train})
    torch.manual_seed(3)
    return build.family_of(chosen, facts), chosen.train


def batches(facts: Any = POINTS, *, killed_at: int = -1) -> Callable[[int], Batch]:
    def of(step: int) -> Batch:
        if step == killed_at:
            raise KilledError
        return batch(facts, step)

    return of


def session(folder: Path, log: Callable[[dict[str, Any]], None] = lambda numbers: None, **options: Any) -> Session:
    checkpoints = Checkpoints(folder)
    return Session(load=checkpoints.newest, save=checkpoints.save, log=log, **options)


def bits(folder: Path) -> dict[str, bytes]:
    """The bytes of the newest checkpoint's tensor files."""
    newest = Checkpoints(folder).newest()
    assert newest is not None
    assert newest.name == "step_00000006"
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", families.kinds())
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(kind: str, precision: str, tmp_path: Path) -> None:
    """Weights, average and optimizer state, after a kill right after a checkpoint (4) and between two (5)."""
    facts = FACTS["grey"]
    whole, settings = start(kind, facts, precision=precision)
    loop.fit(whole, batches(facts), session(tmp_path / "whole"), settings)
    for killed_at in (4, 5) if precision == "fp32" else (5,):
        model, _ = start(kind, facts, precision=precision)
        with pytest.raises(KilledError):
            loop.fit(model, batches(facts, killed_at=killed_at), session(tmp_path / str(killed_at)), settings)
        fresh, _ = start(kind, facts, precision=precision)
        fitted = loop.fit(fresh, batches(facts), session(tmp_path / str(killed_at)), settings)
        assert (fitted.step, fitted.images, fitted.done) == (6, 48, True)
        assert bits(tmp_path / str(killed_at)) == bits(tmp_path / "whole")
        assert set(bits(tmp_path / "whole")) == {"weights.safetensors", "ema.safetensors", "optimizer.safetensors"}


def test_a_stopped_run_saves_and_resumes(tmp_path: Path) -> None:
    """Asked to stop after step 3, it saves step 3, although saves are due at 2 and 4, and resumes to the same bits."""
    model, settings = start()
    loop.fit(model, batches(), session(tmp_path / "whole"), settings)
    model, _ = start()
    steps: list[int] = []
    stopping = session(tmp_path / "run", lambda numbers: steps.append(numbers["step"]), should_stop=lambda: 3 in steps)
    fitted = loop.fit(model, batches(), stopping, settings)
    assert (fitted.step, fitted.done) == (3, False)
    assert Checkpoints(tmp_path / "run").newest().name == "step_00000003"  # type: ignore[union-attr]
    fresh, _ = start()
    assert loop.fit(fresh, batches(), session(tmp_path / "run"), settings).done
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    """Called again with the last checkpoint, `fit` requests no batch and saves nothing."""
    model, settings = start()
    loop.fit(model, batches(), session(tmp_path), settings)
    before = bits(tmp_path)
    again, _ = start()
    fitted = loop.fit(again, batches(killed_at=6), session(tmp_path), settings)
    assert fitted.done
    assert bits(tmp_path) == before
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_an_update(bad: float, tmp_path: Path) -> None:
    """The error has the step, the player and a hint; weights and checkpoints are those of the step before."""
    model, settings = start()
    before: dict[str, Tensor] = {}

    def poisoned(step: int) -> Batch:
        if step == 3:
            before.update({name: value.clone() for name, value in model.state_dict().items()})
            return Batch(batch(POINTS, step).x * bad, batch(POINTS, step).label)
        return batch(POINTS, step)

    with pytest.raises(loop.NonFinite, match=r"loss of net is not finite at step 4") as ended:
        loop.fit(model, poisoned, session(tmp_path), settings)
    assert "train.lr" in ended.value.hint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert Checkpoints(tmp_path).newest().name == "step_00000002"  # type: ignore[union-attr]


def test_a_corrupt_newest_checkpoint_is_skipped(tmp_path: Path) -> None:
    """The run resumes from the previous one, and replaces the corrupt one with the same bits."""
    model, settings = start()
    loop.fit(model, batches(), session(tmp_path / "whole"), settings)
    model, _ = start()
    with pytest.raises(KilledError):
        loop.fit(model, batches(killed_at=5), session(tmp_path / "run"), settings)
    file = tmp_path / "run" / "step_00000004" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    steps: list[int] = []

    def watched(step: int) -> Batch:
        steps.append(step)
        return batch(POINTS, step)

    fresh, _ = start()
    loop.fit(fresh, watched, session(tmp_path / "run"), settings)
    assert steps == [2, 3, 4, 5]
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_learning_rate_rises_and_falls(optimizer: str) -> None:
    """Linear over `warmup` steps, constant, then linear to 0 over the last `decay` of the budget."""
    model, settings = start(steps=20, warmup=4, decay=0.5, lr=0.1, optimizer=optimizer)
    rates: list[float] = []
    loop.fit(model, batches(), Session(log=lambda numbers: rates.append(numbers["lr"])), settings)
    expected = [0.1 * min(1, (s + 1) / 4) * min(1, (1 - s / 20) / 0.5) for s in range(20)]
    assert rates == pytest.approx(expected)


def test_every_weight_has_exactly_one_optimizer() -> None:
    """Muon for matrices, AdamW at a tenth of its rate for the rest (vectors, embeddings, single rows)."""
    model, settings = start("flow_matching", FACTS["grey"], lr=0.1)
    made = optimizers_of(model, settings)
    moved = [(name, p) for name, o in made.items() for group in o.param_groups for p in group["params"]]
    owners = {id(p): name for name, p in moved}
    assert len(moved) == len(owners) == sum(1 for _ in model.parameters())
    for name, p in model.named_parameters():
        matrix = p.dim() >= 2 and min(p.shape[0], p[0].numel()) > 1 and not name.endswith("condition.label.weight")
        assert owners[id(p)] == ("muon" if matrix else "adamw"), name
    assert made["adamw"].param_groups[0]["base_lr"] == pytest.approx(0.01)
    assert list(optimizers_of(model, settings.model_copy(update={"optimizer": "adamw"}))) == ["adamw"]


def test_an_optimizer_does_not_import_the_compiler() -> None:
    """Tested in a new process; the import takes longer than a short training."""
    program = """
import sys, torch
from genflow.training.ema import with_average
from genflow.training.optim import optimizers_of
from genflow.recipe.schema import Train
net = torch.nn.Linear(3, 2)
for optimizer in optimizers_of(net, Train(steps=1)).values():
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_gradients_are_clipped() -> None:
    """A norm above `clip` becomes `clip`; the logged norm is the one before clipping."""
    model, settings = start(clip=1e-3, optimizer="adamw")
    logged: list[float] = []
    norms: list[float] = []
    step = AdamW.step

    def watched(self: Any, *args: Any) -> Any:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdamW, "step", watched)
        loop.fit(model, batches(), Session(log=lambda n: logged.append(n["gradient_norm"])), settings)
    assert min(logged) > 1e-3
    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


def test_a_budget_of_minutes_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget that ends first counts; the last step is saved, and the learning rate has decayed."""
    seconds = itertools.count(step=0.125)  # a clock that advances at every reading
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(seconds), process_time=lambda: 0))
    model, settings = start(steps=10**6, minutes=1, checkpoint_every=10**6)
    rates: list[float] = []
    fitted = loop.fit(model, batches(), session(tmp_path, lambda n: rates.append(n["lr"] / settings.lr)), settings)
    assert fitted.done
    assert 10 < fitted.step < 60
    assert max(rates) == 1
    assert rates[-1] < 0.2
    assert Checkpoints(tmp_path).newest().name == f"step_{fitted.step:08d}"  # type: ignore[union-attr]


def test_the_clock_counts_earlier_attempts(tmp_path: Path) -> None:
    """Seconds and CPU seconds of earlier attempts count in the result and in the budget of minutes."""
    model, settings = start()
    first = loop.fit(model, batches(), session(tmp_path), settings.model_copy(update={"steps": 2}))
    fresh, _ = start()
    second = loop.fit(fresh, batches(), session(tmp_path), settings)
    assert second.seconds > first.seconds
    assert second.cpu_seconds > first.cpu_seconds
    spent = settings.model_copy(update={"steps": 100, "minutes": first.seconds / 60 / 2})
    again, _ = start()
    third = loop.fit(again, batches(killed_at=6), session(tmp_path), spent)
    assert (third.step, third.done) == (6, True)  # the budget was used up before it started


def test_the_logged_numbers(tmp_path: Path) -> None:
    """Every `log_every` steps: loss, the family's own numbers, gradient norm, rate, images, speed and position."""
    model, settings = start("vae", log_every=3)
    logged: list[dict[str, Any]] = []
    loop.fit(model, batches(), Session(log=logged.append), settings)
    assert [n["step"] for n in logged] == [3, 6]
    assert set(logged[0]) == {
        "step", "loss", "kl", "reconstruction", "gradient_norm", "lr", "images", "images_per_second", "seconds",
        "position",
    }  # fmt: skip
    assert logged[1]["images"] == 48
    assert logged[1]["position"] == 1


def test_with_average_restores_the_raw_weights() -> None:
    """The call sees the averaged weights in eval mode; the raw ones are restored, even after an error."""
    model, _ = start()
    raw = {name: p.clone() for name, p in model.state_dict().items()}
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def use() -> None:
        assert not model.training
        assert all(not p.any() for p in model.parameters())
        raise KilledError

    with pytest.raises(KilledError):
        with_average(model, average, use)
    assert model.training
    assert all(torch.equal(p, raw[name]) for name, p in model.state_dict().items())


def test_players_are_updated_one_after_another() -> None:
    """Each player's loss updates only that player, in order, and the others get no gradient from it."""

    class Two(Family):
        players = ("first", "second")

        def __init__(self) -> None:
            super().__init__(POINTS)
            self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.seen: list[tuple[str, bool, bool]] = []

        def loss(self, player: str, batch: Batch, rng: Any) -> tuple[Tensor, dict[str, Tensor]]:
            self.seen.append((player, self.first.weight.requires_grad, self.second.weight.requires_grad))
            answer = self.second(self.first(batch.x.flatten(1))).square().mean()
            return answer, {f"{player}_size": answer}

        def sample(self, noise: Tensor, label: Tensor, rng: Any) -> Any:
            raise NotImplementedError

    model, logged = Two(), []
    _, settings = start(steps=1, precision="fp32")
    loop.fit(model, batches(), Session(log=logged.append), settings)
    assert model.seen == [("first", True, False), ("second", False, True)]
    assert {"loss/first", "loss/second", "gradient_norm/first", "gradient_norm/second"} <= set(logged[0])
    assert logged[0]["loss/first"] != logged[0]["loss/second"]  # the first player was already updated


WORKER = """
from support.small import FACTS, batch, recipe
from genflow import build
from genflow.training import clock, loop
from genflow.batch import Batch
from genflow.data.stream import rank_range
from genflow.training.session import Session

facts = FACTS["points"]
start, stop = rank_range(7, rank, 2)

def own(step):
    whole = batch(facts, step, rows=7)
    return Batch(whole.x[start:stop], whole.label[start:stop])

for budget in ({"steps": 6}, {"steps": 10**6, "minutes": 0.003}, {"steps": 10**6, "minutes": 99, "log_every": 3}):
    common = {"batch": 7, "log_every": 1, "warmup": 2, "precision": "fp32"}
    chosen = recipe("flow_matching", facts, train={**common, **budget})
    torch.manual_seed(3)
    model, losses = build.family_of(chosen, facts), []
    session = Session(
        rank=rank, world=2, log=lambda numbers: losses.append(numbers["loss"]),
        save=lambda step, write: losses.append(step),
        should_stop=lambda: len(budget) == 3 and len(losses) == 2,  # never true on the second worker
    )
    fitted = loop.fit(model, own, session, chosen.train)
    torch.save((fitted.step, losses, model.state_dict()), f"{folder}/{len(budget)}-{rank}.pt")
"""


def test_two_workers_have_the_losses_of_one(tmp_path: Path) -> None:
    """With uneven shares of a batch of 7, losses and weights agree up to rounding. With a budget of minutes both end at
    the same step; asked to stop, both end at the same report and save."""
    two_workers(WORKER, tmp_path)
    model, settings = start(batch=7, precision="fp32")
    alone: list[float] = []
    whole = Session(log=lambda numbers: alone.append(numbers["loss"]))
    loop.fit(model, lambda step: batch(POINTS, step, rows=7), whole, settings)
    steps, minutes, stopped = ([torch.load(tmp_path / f"{n}-{rank}.pt") for rank in (0, 1)] for n in (1, 2, 3))
    assert steps[0][1] == pytest.approx([*alone, 6], rel=1e-3)
    assert (stopped[0][0], stopped[1][0], stopped[0][1][-1]) == (9, 9, 9)
    for name, value in model.state_dict().items():
        assert torch.equal(steps[0][2][name], steps[1][2][name])
        torch.testing.assert_close(steps[0][2][name], value, rtol=0, atol=5e-3)  # Muon rounds to bfloat16
    assert minutes[0][0] == minutes[1][0] > 0
    assert all(torch.equal(value, minutes[1][2][name]) for name, value in minutes[0][2].items())


def test_the_family_receives_the_position_and_the_step() -> None:
    """`prepare` is called before and `after_step` after every step, with the documented arguments."""
    model = family("flow_matching", POINTS)
    calls: list[tuple[str, float]] = []
    model.prepare = lambda position: calls.append(("before", position))  # type: ignore[method-assign]
    model.after_step = lambda step: calls.append(("after", step))  # type: ignore[method-assign]
    _, settings = start(steps=2)
    loop.fit(model, batches(), Session(), settings)
    assert calls == [("before", 0.0), ("after", 1), ("before", 0.5), ("after", 2)]


class Failing(families.family_class("flow_matching")):  # type: ignore[misc]
    """Diagnoses a failure at step 40, once if `heals` and else always; and fits a buffer in `finish`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("mean", torch.zeros(()))
        self.heals = True

    def diagnose(self, numbers: dict[str, float]) -> str:
        self.losses.append(numbers["loss"])
        return "it cannot see" if len(self.losses) == 2 or (len(self.losses) > 2 and not self.heals) else ""

    def finish(self, data: Callable[[int], Batch]) -> None:
        assert not self.training
        self.mean.copy_(sum(data(i).x.mean() for i in range(3)) / 3)


def failing(folder: Path, **train: Any) -> tuple[Failing, list[dict[str, Any]], Callable[[], Any]]:
    chosen = recipe("flow_matching", POINTS, train={**QUICK, "steps": 60, "checkpoint_every": 25, **train})
    torch.manual_seed(3)
    built = build.family_of(chosen, POINTS)
    model = Failing({"net": built.net}, POINTS)
    model.losses, logged = [], []
    whole = lambda step: batch(POINTS, 100 + step)  # noqa: E731
    run = lambda: loop.fit(model, batches(), session(folder, logged.append), chosen.train, full_batches=whole)  # noqa: E731
    return model, logged, run


def test_a_diagnosis_ends_the_run_with_the_familys_message(tmp_path: Path) -> None:
    """The error has the family's message, the step and a smaller rate to try; the last checkpoint stays."""
    _, _, run = failing(tmp_path)
    with pytest.raises(loop.TrainingDiverged, match=r"it cannot see \(step 40\)") as ended:
        run()
    assert "train.lr" in ended.value.hint
    assert Checkpoints(tmp_path).newest().name == "step_00000025"  # type: ignore[union-attr]


def test_a_rollback_resumes_from_the_newest_checkpoint_at_half_the_rate(tmp_path: Path) -> None:
    """The steps after the checkpoint are repeated, and the run finishes."""
    _, logged, run = failing(tmp_path, on_trouble="rollback", decay=0.0)
    assert run().step == 60
    steps = [numbers["step"] for numbers in logged]
    assert steps == [*range(1, 40), *range(26, 61)]
    assert logged[38]["lr"] == pytest.approx(2 * logged[39]["lr"])


def test_there_are_at_most_three_rollbacks(tmp_path: Path) -> None:
    """A run that keeps failing then ends with the family's message."""
    model, _, run = failing(tmp_path, on_trouble="rollback")
    model.heals = False
    with pytest.raises(loop.TrainingDiverged, match="it cannot see"):
        run()
    assert len(model.losses) == 5


def test_finish_is_called_once_at_the_end(tmp_path: Path) -> None:
    """`finish` gets whole batches, and its buffers are in the last checkpoint."""
    model, _, run = failing(tmp_path, steps=10)
    run()
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None
    kept = load_file(newest / "weights.safetensors")["mean"]
    assert kept == model.mean == sum(batch(POINTS, 100 + i).x.mean() for i in range(3)) / 3


@pytest.mark.parametrize("limit", ["minutes", "cpu_minutes"])
def test_a_budget_of_time_ends_a_run(limit: str, tmp_path: Path) -> None:
    """A budget of wall-clock or CPU minutes ends the run before its steps are done."""
    model, train = start(steps=1_000_000, **{limit: 0.005})
    fitted = loop.fit(model, batches(), session(tmp_path), train)
    assert fitted.done
    assert 0 < fitted.step < 1_000_000


def test_the_seconds_of_each_part_of_a_step() -> None:
    """Each report has the mean seconds of each part since the last; their sum is at most the elapsed time."""
    model, settings = start(log_every=2)
    seen: list[dict[str, float]] = []
    began = time.perf_counter()
    loop.fit(model, batches(), Session(watch=lambda numbers, parts: seen.append(parts)), settings)
    assert len(seen) == 3
    assert set(seen[0]) == {"data", "loss", "backward", "gather", "optimizer", "average", "moments"}
    assert set(seen[1]) >= {"report", "checkpoint"}
    assert all(seconds >= 0 for parts in seen for seconds in parts.values())
    assert 0 < 2 * sum(sum(parts.values()) for parts in seen) <= time.perf_counter() - began


def test_our_adamw_equals_torchs() -> None:
    """To the bit, fused with weight decay, and unfused without."""
    for options in ({"weight_decay": 0.1, "fused": True}, {"weight_decay": 0.0}):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
        made = [kind([p], lr=0.01, **options) for kind, p in zip((AdamW, torch.optim.AdamW), weights, strict=True)]
        for step in range(5):
            for p, optimizer in zip(weights, made, strict=True):
                p.grad = torch.full_like(p, 0.1 * step) + p.detach()
                optimizer.step()
        assert torch.equal(*weights)
