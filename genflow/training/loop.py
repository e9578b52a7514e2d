"""The one training loop, for every family and any number of players, workers and devices.

It knows no family, no Ray and no MLflow. Every random draw is a function of (seed, purpose, step, row), the batch of a
step is a function of the step, and a checkpoint holds the rest. So a run that is killed at any point resumes to the
same bits (on GPUs: see `devices.is_deterministic`), and the number of workers changes only the order of sums.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genflow.batch import Batch
from genflow.data.stream import rank_range
from genflow.errors import GenflowError
from genflow.families.base import DIAGNOSE_EVERY, Family
from genflow.maths.rng import BatchRng
from genflow.maths.tf32 import tf32
from genflow.recipe.schema import Train
from genflow.training import checkpoint, resume, sharded_checkpoint
from genflow.training.activations import checkpoint_layers
from genflow.training.all_reduce import Gradients
from genflow.training.clock import BudgetClock, StepTimer
from genflow.training.compilation import compile_nets
from genflow.training.ema import Ema, with_average
from genflow.training.fsdp import ShardedGradients, shard
from genflow.training.micro_batches import mean, micro_batches
from genflow.training.moments import Moments
from genflow.training.optim import optimizers_of
from genflow.training.precision import multiplies_bfloat16
from genflow.training.session import Session
from genflow.training.workers import ROUNDING, WorkerError, Workers, connected


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Args:
        step: steps made.
        images: images seen.
        seconds: wall-clock seconds of training, over all attempts.
        cpu_seconds: CPU seconds of this worker, over all attempts.
        done: whether the budget is used up, or training has stopped early; False if the run was asked to stop.
    """

    step: int
    images: int
    seconds: float
    cpu_seconds: float
    done: bool


MAX_ROLLBACKS = 3


class NonFinite(GenflowError):  # noqa: N818  the loss's state, as numpy and torch call it
    """The loss or its gradient is not finite; the weights have not been updated."""


class TrainingDiverged(GenflowError):  # noqa: N818  the name that the families use
    """The family's `diagnose` reports that training has failed."""


def fit(
    family: Family,
    batches: Callable[[int], Batch],
    session: Session,
    train: Train,
    on_end: Callable[[int, dict[str, Tensor]], None] = lambda step, average: None,
    full_batches: Callable[[int], Batch] | None = None,
) -> FitResult:
    """Train a family until its budget of steps or minutes is used up.

    Args:
        family: with initial weights, which are trained in place; all workers start with those of worker 0.
        batches: returns this worker's share of the batch of a step.
        session: rank, device and callbacks.
        train: the recipe's section.
        on_end: called on rank 0 after the last checkpoint of a finished run, with the step and the averaged weights.
        full_batches: returns the whole batch of a step, for the family's `finish`; None: `batches` are whole.

    Raises:
        NonFinite: the loss or gradient is not finite; raised before the optimizer's step.
        TrainingDiverged: the family diagnoses a failure. Both errors end the run at once, or after three rollbacks if
            the recipe asks for them.
        WorkerError: another worker has died, hangs, or has other weights or checkpoints.
    """
    sharded = session.sharded and session.world > 1
    with (
        tf32(train.precision != "fp32"),
        connected(session.rank, session.world) as workers,
        sharded_checkpoint.saver(session.shards, workers, sharded=sharded) as saver,
    ):
        return _fit(family, batches, session, train, on_end, full_batches or batches, workers, saver)


def _fit(
    family: Family, batches: Callable[[int], Batch], session: Session, train: Train,
    on_end: Callable[[int, dict[str, Tensor]], None], full_batches: Callable[[int], Batch], workers: Workers,
    saver: sharded_checkpoint.Saver | None,
) -> FitResult:  # fmt: skip
    # Set up.
    if session.threads:
        torch.set_num_threads(session.threads)
    device = torch.device(session.device)
    sharded = session.sharded and session.world > 1
    family.to("cpu" if sharded else device).train()  # a net that is to be sharded may not fit on one device
    if apart := workers.adopt(family.state_dict()):
        session.note(f"the workers' start weights differed by {apart:.2g}: all start with those of worker 0")
    if train.checkpoint_activations:
        for player in family.players:
            checkpoint_layers(getattr(family, player))
    if sharded:
        for player in family.players:
            shard(getattr(family, player), device, session.world)
        family.to(device)
    optimizers = {player: optimizers_of(getattr(family, player), train) for player in family.players}
    kind = ShardedGradients if sharded else Gradients
    gradients = {player: kind(getattr(family, player), session.world) for player in family.players}
    named = {f"{player}.{name}": o for player, own in optimizers.items() for name, o in own.items()}
    ema = Ema(family, train.ema)
    start, stop = rank_range(train.batch, session.rank, session.world)
    amp = _use_bfloat16(train.precision, device)
    if train.compile:
        for player in family.players:
            compile_nets(getattr(family, player))
    clock = BudgetClock(train)
    parameters = sum(p.numel() for p in family.parameters())
    timer = StepTimer()
    moments = Moments(family, ema, session, workers, train, clock, amp=amp)

    # Resume from the newest checkpoint.
    step, saved, rollbacks = 0, -1, 0

    def load() -> bool:
        nonlocal step, saved, rollbacks
        if saver:
            saver.wait()
        if folder := resume.choose(workers, session):
            where = "cpu" if sharded else session.device
            state = workers.together(lambda: resume.read(folder, family, ema, named, where))
            step = saved = state["step"]
            rollbacks = state.get("rollbacks", 0)
            clock.resume(state)
            moments.load(state.get("moments"))
        return bool(folder)

    def compare() -> None:
        """Check that all workers have the same weights and averages, up to rounding that they then lose."""
        if session.world > 1 and not sharded:
            own = {**family.state_dict(), **{f"average of {name}": each for name, each in ema.state().items()}}
            if (apart := workers.adopt(own)) > ROUNDING:
                raise WorkerError(f"the workers' weights differ by {apart:.2g} at step {step}")

    def save(*, ended: bool = False) -> None:
        nonlocal saved
        if saved != step or ended:
            state: checkpoint.State = {
                "step": step, "images": step * train.batch, "seconds": clock.seconds(),
                "cpu_seconds": clock.cpu_seconds(), "parameters": parameters, "rollbacks": rollbacks,
                "moments": moments.state(),
            }  # fmt: skip
            if saver and not ended:
                saver.save(step, family, ema.state(), named, state)
                session.barrier({"step": step})
                saved = step
                return
            if saver:
                saver.wait()
            tensors: checkpoint.Tensors = {}
            if session.rank == 0 or sharded:
                tensors = checkpoint.gather(family, ema.state(), named, keep=session.rank == 0)

            def commit() -> None:
                if session.rank == 0:
                    session.save(step, lambda folder: checkpoint.write(folder, tensors, state))
                    if ended:
                        on_end(step, tensors["ema"])

            workers.together(commit)
            session.barrier({"step": step})
            saved = step

    def roll_back(why: GenflowError) -> None:
        """Load the newest checkpoint and halve the learning rate; the steps after it get the same draws again."""
        nonlocal rollbacks
        before = rollbacks
        if train.on_trouble == "stop" or before >= MAX_ROLLBACKS or not load():
            raise why
        rollbacks = before + 1
        family.reset_diagnosis()

    load()
    stopped = False
    clock.start()
    clock.synchronize(session.world, device)
    moments.begin(step)
    timer.mark("")
    while not (done := clock.position(step) >= 1 or moments.is_exhausted):
        batch = batches(step)
        timer.mark("data")
        lr = _lr_factor(train, step, clock.position(step)) * 0.5**rollbacks
        family.prepare(clock.position(step))
        log: dict[str, Tensor] = {}
        failure: GenflowError | None = None

        # Update the players one after another.
        for player in family.players:
            module: nn.Module = getattr(family, player)
            others = [getattr(family, name) for name in family.players if name != player]
            _require_grad(others, False)
            rng = BatchRng(train.seed, f"loss/{player}", step, start=start, device=device)
            losses = []
            for part, draws, is_last in micro_batches(batch, rng, train.accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    losses.append((len(part), *family.loss(player, part, draws)))
                timer.mark("loss")
                gradients[player].complete = is_last
                (losses[-1][1] * (len(part) / train.batch * gradients[player].factor)).backward()
                timer.mark("backward")
            loss, numbers = mean(losses)
            _require_grad(others, True)
            norm = gradients[player].reduce_and_clip(train.clip)
            timer.mark("gather")
            if not math.isfinite(norm):
                failure = NonFinite(
                    f"the loss of {player} is not finite{_where(loss, workers)} at step {step + 1} "
                    f"(loss {float(loss.detach()):.3g}, "
                    f"gradient norm {norm:.3g}); the weights were not updated",
                    f"try --set train.lr={train.lr / 3:.2g}, or --set train.precision=fp32",
                )
                break
            for optimizer in optimizers[player].values():
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * lr
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            timer.mark("optimizer")
            suffix = "" if len(family.players) == 1 else f"/{player}"
            log |= {f"loss{suffix}": loss.detach(), **{k: v.detach() for k, v in numbers.items()}}
            log[f"gradient_norm{suffix}"] = torch.tensor(norm)

        if failure is None and (step + 1) % DIAGNOSE_EVERY == 0:
            words = family.diagnose(_numbers(log, session, (stop - start) / train.batch))
            if words:
                failure = TrainingDiverged(f"{words} (step {step + 1})", f"try --set train.lr={train.lr / 3:.2g}")
        if failure is not None:
            module.zero_grad(set_to_none=True)
            roll_back(failure)
            continue

        step += 1
        ema.update(step)
        family.after_step(step)
        clock.synchronize(session.world, device)
        timer.mark("average")
        moments.after_step(step)
        if session.rank == 0:
            session.tick(step, clock.position(step))
        timer.mark("moments")
        stop_requested = False
        if step % train.log_every == 0:
            share_of_batch, parts = (stop - start) / train.batch, timer.pop_means()
            stop_requested = _report(log, step, lr * train.lr, clock, session, share_of_batch, train, parts)
            timer.mark("report")
        if step % train.checkpoint_every == 0:
            compare()
            save()
            timer.mark("checkpoint")
        # One worker may stop at any step. Several stop together at a report, which shares the stop request.
        if stopped := stop_requested or (session.world == 1 and session.should_stop()):
            break
    if saved != step:
        compare()
    ended = done and not stopped
    if ended:
        moments.end(step)
    if ended and (session.rank == 0 or sharded):
        with_average(family, ema.state(), lambda: family.finish(full_batches))
    save(ended=ended)
    if saver:
        saver.wait()
    return FitResult(step, step * train.batch, clock.seconds(), clock.cpu_seconds(), ended)


def _lr_factor(train: Train, step: int, position: float) -> float:
    """The factor of train.lr: a linear rise over `warmup` steps, a linear fall over the last `decay` of the budget."""
    rise = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    fall = min(1.0, (1 - position) / train.decay) if train.decay else 1.0
    return max(0.0, rise * fall)


def _require_grad(modules: Iterable[nn.Module], value: bool) -> None:
    for module in modules:
        module.requires_grad_(value)


def _where(loss: Tensor, workers: Workers) -> str:
    """On which of several workers the loss is not finite."""
    finite = workers.collect(bool(loss.detach().isfinite()))
    bad = [str(rank) for rank, fine in enumerate(finite) if not fine]
    return f" on worker {', '.join(bad)}" if len(finite) > 1 and bad else ""


def _use_bfloat16(wanted: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: as the recipe says, or for `auto` if the hardware multiplies it."""
    if wanted != "auto":
        return wanted == "bf16"
    return multiplies_bfloat16(device)


def _report(
    log: dict[str, Tensor], step: int, lr: float, clock: BudgetClock, session: Session, weight: float, train: Train,
    parts: dict[str, float],
) -> bool:  # fmt: skip
    """Log a step's numbers; return whether any of several workers was asked to stop."""
    if session.world > 1:
        log = {**log, "stop": torch.tensor(float(session.should_stop()))}
    numbers = _numbers(log, session, weight)
    stop_requested = numbers.pop("stop", 0.0) > 0
    if session.rank == 0:
        seconds = clock.seconds()
        numbers |= {"lr": lr, "images": step * train.batch, "images_per_second": step * train.batch / seconds}
        numbers |= {"seconds": seconds, "position": clock.position(step)}
        session.log({"step": step, **numbers})
        session.watch({"step": step, **numbers}, parts)
    return stop_requested


def _numbers(log: dict[str, Tensor], session: Session, weight: float) -> dict[str, float]:
    """A step's numbers, averaged over the workers."""
    values = torch.stack([v.float().cpu() for v in log.values()])
    if session.world > 1:
        values = values.to(session.device) * weight
        dist.all_reduce(values)
        values = values.cpu()
    return dict(zip(log, values.tolist(), strict=True))
