"""Kill -9 any process at any moment, any number of times: the same command must end with the same bits.

    make chaos                                                   every family, with one worker and with two
    python benchmarks/chaos.py --kills 30 --family gan --workers 1 --seed 7

Each family is trained twice with `genflow train`. The first run is undisturbed. The second repeatedly loses a process
at a random moment: the command itself, the job, a worker, Ray's controller or daemons, the sender to MLflow. If the run
does not recover by itself, the same command is started again. A violation is:

- weights, average or optimizer state that differ in one bit from the undisturbed run's;
- a metric in MLflow that is missing, duplicated, or (except for times) of another value;
- a command that does not end, that leaves a process, or that leaves a half-written file in the store.

The seed determines the moments and the processes; the instruction that is interrupted depends on the machine's timing.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from genflow.data.prepare import in_process, prepare
from genflow.families import family_class, kinds
from genflow.maths.rng import key
from genflow.recipe.files import dump
from genflow.recipe.schema import Data
from genflow.storage.json_lines import append_durably
from genflow.storage.store import Store
from genflow.system.source_hash import resources_dir
from genflow.tracking import database, sync
from genflow.training.checkpoint_folders import Checkpoints

DATA = "ring8"
STEPS, EVERY = 240, 6  # checkpoints so often that most of the time one is being written
TIMES = {"train/seconds", "train/images_per_second", "train/position", "minutes"}  # of the clock
PATIENCE_S, GONE_S = 400.0, 120.0  # the sender of a dead run may need a minute for the rest
ATTEMPTS = 8  # starts of the same command after the last kill


@dataclass
class Outcome:
    """The result of one family.

    Args:
        family: its kind.
        workers: the number of workers.
        seed: repeats the same kills.
        killed: the killed processes, each with its second.
        attempts: how often the command was started.
        violations: differences from the undisturbed run, and other failures.
    """

    family: str
    workers: int
    seed: int
    killed: list[str] = field(default_factory=list)
    attempts: int = 0
    violations: list[str] = field(default_factory=list)


# --- Training


def template(folder: Path, steps: int = STEPS) -> Store:
    """A store with data, MLflow's database, and an initial run for the families that require one."""
    store = Store(folder / "template")
    prepare(store, Data(source=DATA, samples=2000), in_process, lambda event, **fields: None)
    database.prepare(store)
    if any(family_class(kind).teacher == "required" for kind in kinds()):
        recipe_file(folder / "source.yaml", "flow_matching", 1, "source", steps)
        assert command(store, folder / "source.yaml", "flow_matching").wait() == 0
    return store


def recipe_file(file: Path, family: str, workers: int, name: str, steps: int = STEPS) -> Path:
    """A small run of a family, with a checkpoint every few steps."""
    init = "source" if family_class(family).teacher == "required" else ""
    net = {} if init or family == "normalizing_flow" else {"net": {"kind": "mlp", "width": 32, "depth": 1}}
    train = {"steps": steps, "batch": 16, "log_every": 1, "checkpoint_every": EVERY, "precision": "fp32"}
    file.write_text(dump({
        "name": name, "data": {"name": DATA}, **({"init": init} if init else {}), **net, "train": train,
        "cluster": {"workers": workers, "cpus": 0.5},
    }), encoding="utf-8")  # fmt: skip
    return file


def command(store: Store, recipe: Path, family: str) -> "subprocess.Popen[str]":
    """Start `genflow train` as a user does."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"GENFLOW_STORE": str(store.root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(resources_dir())}
    with (
        open(recipe.with_suffix(".json"), "w", encoding="utf-8") as result,
        open(recipe.with_suffix(".log"), "a", encoding="utf-8") as log,
    ):
        return subprocess.Popen(
            [sys.executable, "-m", "genflow.cli", "train", family, "-c", str(recipe), "--json"],
            env=environment, text=True, stdout=result, stderr=log, start_new_session=True, encoding="utf-8",
        )  # fmt: skip


# --- Killing


def tree(pid: int) -> dict[int, str]:
    """A process and its living descendants, with their command lines."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, waiting = {}, [pid]
    while waiting:
        current = waiting.pop()
        waiting += children.get(current, [])
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{current}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if words:
                found[current] = words
    return found


def called(words: str) -> str:
    """A short name for a process."""
    for mark, name in (
        ("genflow.cli", "command"), ("genflow.tracking.sender", "sender"), ("jobs.train", "job"),
        ("RayTrainWorker", "worker"),
        ("TrainController", "controller"), ("raylet", "raylet"), ("gcs_server", "gcs"),
    ):  # fmt: skip
        if mark in words:
            return name
    return words.split()[0].rpartition("/")[2][:24]


def strike(process: "subprocess.Popen[str]", after: float, draw: random.Random) -> str:
    """Wait, then kill one process of a command, each kind with the same probability.

    Returns:
        The killed process, or an empty text if the command ended before.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
        return ""
    kinds_: dict[str, list[int]] = {}
    for pid, words in tree(process.pid).items():
        kinds_.setdefault(called(words), []).append(pid)
    if not kinds_:
        return ""
    name = draw.choice(sorted(kinds_))
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(sorted(kinds_[name])), signal.SIGKILL)
    return f"{name} at {after:.1f} s"


def disturb(store: Store, recipe: Path, took: float, kills: int, outcome: Outcome, draw: random.Random) -> None:
    """Run the command until it succeeds, after killing one of its processes the given number of times."""
    left, calm = kills, 0
    while calm < ATTEMPTS:
        outcome.attempts += 1
        process = command(store, recipe, outcome.family)
        below: dict[int, str] = {}
        while left > 0:
            below |= tree(process.pid)
            what = strike(process, draw.uniform(0.05, 0.9) * took, draw)
            if not what:
                break
            outcome.killed.append(what)
            left -= 1
            below |= tree(process.pid)
            if process.poll() is not None or what.startswith(("command", "job")):
                break
        calm += left == 0
        below |= tree(process.pid)
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            outcome.violations.append(f"not ended after {PATIENCE_S:g} s ({', '.join(outcome.killed[-1:])})")
            for pid in tree(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = process.wait()
        await_end(below, outcome)
        if code == 0:  # perhaps before all kills, if it was faster than the undisturbed run
            return
    outcome.violations.append(f"not finished after {ATTEMPTS} undisturbed attempts")


def await_end(below: dict[int, str], outcome: Outcome) -> None:
    """Wait until the processes of a dead command have ended by themselves."""
    ends = time.monotonic() + GONE_S
    while left := [words for pid, words in below.items() if lives(pid, words)]:
        if time.monotonic() > ends:
            outcome.violations.append(f"left running: {', '.join(sorted({called(words) for words in left}))}")
            return
        time.sleep(0.1)


def lives(pid: int, words: str) -> bool:
    return tree(pid).get(pid, "")[:40] == words[:40] != ""


# --- Comparing


def final(store: Store, run: str) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, as bytes."""
    from safetensors.torch import load_file

    newest = Checkpoints(store.folder("runs", run) / "checkpoints").newest()
    assert newest is not None
    return {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file in ("weights", "ema", "optimizer")
        for name, tensor in load_file(newest / f"{file}.safetensors").items()
    }  # fmt: skip


def metrics(store: Store, run: str) -> tuple[dict[tuple[str, int], float], list[str]]:
    """MLflow's metrics of a run by key and step, and those that it has twice."""
    with contextlib.closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        rows = database.execute(
            "select key, step, value from metrics where run_uuid in "
            "(select run_uuid from tags where key = 'genflow.run' and value = ?)", (run,),
        ).fetchall()  # fmt: skip
    seen = Counter((key, step) for key, step, _ in rows)
    return {(key, step): value for key, step, value in rows}, [f"{k} at {s}" for (k, s), n in seen.items() if n > 1]


def compare(calm: Store, store: Store, run: str, outcome: Outcome) -> None:
    """Add every difference to the violations."""
    if store.get("runs", run) is None:
        outcome.violations.append("the run is not finished")
        return
    ours, theirs = final(store, run), final(calm, run)
    differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if differing:
        outcome.violations.append(f"{len(differing)} of {len(theirs)} tensors differ: {', '.join(differing[:3])}")
    for each in (calm, store):  # send what MLflow was too slow to accept during the command, as after an outage
        sent = sync.sync(each, deadline_s=PATIENCE_S)
        if sent.problem:
            outcome.violations.append(f"MLflow does not accept the rest: {sent.problem}")
    (logged, twice), (expected, _) = metrics(store, run), metrics(calm, run)
    if twice:
        outcome.violations.append(f"{len(twice)} metrics are twice in MLflow: {', '.join(twice[:3])}")
    if lacking := expected.keys() - logged.keys():
        outcome.violations.append(f"{len(lacking)} metrics are not in MLflow: {sorted(lacking)[:3]}")
    if wrong := [k for k in expected.keys() & logged.keys() if k[0] not in TIMES and expected[k] != logged[k]]:
        outcome.violations.append(f"{len(wrong)} metrics differ: {sorted(wrong)[:3]}")
    if torn := [path.name for path in store.folder("runs", run).rglob("*.tmp-*")]:
        outcome.violations.append(f"left half-written: {', '.join(torn[:3])}")


def chaos(made: Store, family: str, workers: int, kills: int, seed: int, steps: int = STEPS) -> Outcome:
    """Train one family undisturbed and with kills, and compare."""
    outcome = Outcome(family, workers, seed)
    folder = made.root.parent / f"{family}-{workers}-{seed}"
    calm, store = (Store(shutil.copytree(made.root, folder / name)) for name in ("calm", "chaos"))
    files = [recipe_file(folder / f"{name}.yaml", family, workers, family, steps) for name in ("calm", "chaos")]
    started = time.monotonic()
    if command(calm, files[0], family).wait() != 0:
        outcome.violations.append("the undisturbed run failed")
        return outcome
    took = time.monotonic() - started
    run = json.loads(files[0].with_suffix(".json").read_text(encoding="utf-8"))["run"]
    disturb(store, files[1], took, kills, outcome, random.Random(key("chaos", seed, family, workers)))
    compare(calm, store, run, outcome)
    if not outcome.violations:
        shutil.rmtree(folder)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", help="repeatable; default: every family")
    parser.add_argument("--workers", default="1,2", help="numbers of workers")
    parser.add_argument("--kills", type=int, default=3, help="kills of each family with each number of workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="repeat with the next seeds")
    parser.add_argument("--json", type=Path, help="a file for the outcomes, one per line")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="genflow-chaos-"))
    made = template(folder)
    outcomes: list[Outcome] = []
    for seed in range(given.seed, given.seed + given.rounds):
        for family in given.family or kinds():
            for workers in map(int, given.workers.split(",")):
                outcome = chaos(made, family, workers, given.kills, seed)
                outcomes.append(outcome)
                show(outcome, folder)
                if given.json:
                    append_durably(given.json, vars(outcome))
    killed, wrong = sum(len(o.killed) for o in outcomes), [o for o in outcomes if o.violations]
    print(f"\nN = {killed} kills in {len(outcomes)} runs; violations: {len(wrong)}")
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if wrong else 0)


def show(outcome: Outcome, folder: Path) -> None:
    """Print one run in a line, and its violations, each with the command that repeats it."""
    sign = "✘" if outcome.violations else "✔"
    about = f"workers {outcome.workers}  seed {outcome.seed}  attempts {outcome.attempts}"
    print(f"{sign} {outcome.family:<17} {about}  killed: {', '.join(outcome.killed)}", flush=True)
    again = (f"python benchmarks/chaos.py --family {outcome.family} --workers {outcome.workers} "
             f"--kills {max(1, len(outcome.killed))} --seed {outcome.seed}")  # fmt: skip
    for violation in outcome.violations:
        print(f"    {violation}\n    repeat: {again}; its files: {folder}", flush=True)


if __name__ == "__main__":
    main()
