"""Time to quality: CPU seconds until the samples of a training have a stated Fréchet distance.

    python -m benchmarks.bench.quality [--data fashion ...] [--peers diffusers ...] [--given published tuned]
        [--seeds 0,1,2] [--seconds 60] [--folder build/quality] [--out docs/benchmarks.md]

genflow trains its default flow matching for `--seconds` of CPU time, and the distance that it reaches is the threshold.
If it learns latents, its CPU time is that of the autoencoder and of encoding, too. A peer trains for as many times that
as `BUDGETS` says. The CPU time of a step depends on what else the machine does, so
it is measured in turns with a step of genflow (`pairs.py`), and budgets are numbers of steps. A peer's weights are
copied at points in geometric progression, and samples are drawn after the end. If the last ones do not reach the
threshold, earlier ones are not measured. Only the training counts. Each finished training is a file in the folder, so
the same command resumes, and more seeds, peers and data sets can follow. The section of the page is written from the
files of all seeds.
"""

import argparse
import functools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genflow
from benchmarks.bench import quality_page
from benchmarks.bench.examples import PUBLISHED, Example
from benchmarks.bench.pairs import Ratio, ratio, take_turns
from benchmarks.bench.peers import PEERS
from benchmarks.bench.precision import FORMAT, autocast
from benchmarks.bench.steps import Genflow
from benchmarks.bench.tuned import Tuned
from genflow import build
from genflow.data.preview import render
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.data.values import from_x
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import FeatureReference, load_features
from genflow.evaluation.metric_suite import MetricSuite
from genflow.recipe.schema import Evaluate, parse
from genflow.runs import cpu_seconds
from genflow.sampling.engine import Engine
from genflow.storage.artifact import Artifact
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.system import environment
from genflow.system.documents import Json

DATA: dict[str, dict[str, Any]] = {  # data sets, with source and settings
    "fashion": {"source": "fashion"},
    "emoji-animals-food": {"source": "emoji-animals-food", "size": 32},
    "emoji-animals-food-64": {"source": "emoji-animals-food", "size": 64},
}
BUDGETS = {"tuned": (0.625, 1.25, 2.5), "published": (1.25, 2.5, 5.0)}  # points, in multiples of genflow's CPU time
ROUNDS = {"tuned": 8, "published": 4}  # turns that give the CPU time of a step
SAMPLES, ROWS, SHOWN = 500, 50, 40  # samples to measure, rows of a batch of them, samples of the picture
OURS = "genflow"


class Judge:
    """The distance of samples of one data set.

    Args:
        store: holds the data set and its features.
        name: of the data set.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.data = Dataset.open(store.find("datasets", name))
        self.features: FeatureReference = load_features(store, self.data, "classifier", lambda event, **_: None)
        self.labels = samples.labels(self.data, self.features.real, SAMPLES)
        self._suite = MetricSuite(self.features, Evaluate())

    def measure(self, records: np.ndarray) -> Json:
        """The distance of records (N, H, W, C) with its interval and floor."""
        metric = self._suite.distance(self.features.embed(records)[0], self.labels)
        return {key: metric[key] for key in ("value", "low", "high", "floor", "features")}


def train_ours(store: Store, judge: Judge, name: str, seconds: float, seed: int) -> tuple[Json, np.ndarray]:
    """Train genflow's default flow matching by its command's job; its result and its samples.

    The result's `work` is all CPU time, that of autoencoder and latents too, in steps of the last training.
    """
    run = genflow.train(
        "flow_matching", data=name, cpu_minutes=seconds / 60, seed=seed, name=f"quality-{name}-s{seed}", store=store
    )
    drawn = run.engine.draw(samples.seeds(seed, SAMPLES), judge.labels.tolist())
    *before, own = cpu_seconds(store, run.artifact)
    found = {
        "steps": run.meta["steps"], "seconds": own, "batch": run.recipe.train.batch, "evaluations": drawn.nfe,
        "parameters": run.meta["parameters"], "run": run.artifact.id,
        "work": run.meta["steps"] * (1 + sum(before) / own),
    }  # fmt: skip
    return {**found, "fd": judge.measure(drawn.images)}, drawn.images


def example_of(name: str, given: str, data: Dataset, batch: int, seed: int) -> Example:
    """A peer's training.

    Args:
        name: of the peer.
        given: "published" or "tuned".
        data: to train on.
        batch: rows of a step of a tuned loop.
        seed: of the weights.

    Raises:
        ImportError: the peer is not installed.
    """
    shape, classes = data.facts.shape, data.facts.classes
    if given == "published":
        made: Example = PUBLISHED[name](shape, classes, len(data.splits["train"]), seed)
        return made
    recipe = parse({"family": {"kind": "flow_matching"}, "net": {"kind": "unet2d"}})
    net: Any = build.family_of(build.resolve(recipe, data.facts), data.facts).net
    return Tuned(PEERS[name], net._options, shape, batch, classes, seed)


def cost(example: Example, data: Dataset, ours: Artifact, rounds: int) -> Ratio:
    """How many times as much CPU time a peer's step takes as one of genflow's; changes the peer's weights.

    Args:
        example: the peer's training.
        data: that the peer trains on.
        ours: genflow's run, on this data or its latents.
        rounds: turns of each.
    """
    engine = Engine.load(ours)
    recipe, facts = engine.recipe, engine.family.facts
    train = {key: getattr(recipe.train, key) for key in ("lr", "optimizer")}
    genflow_training = Genflow(facts.shape, recipe.train.batch, facts, net=recipe.net, train=train)
    rows = Stream(data.splits["train"], example.batch, 0)(0)
    labels = torch.as_tensor(rows.label)
    turns = {"peer": lambda: example.step(rows.x, labels, 0.0), "ours": lambda: genflow_training.steps(1)}
    seconds = take_turns(turns, rounds, warm_up=1)
    return ratio(seconds["peer"], seconds["ours"])


def train(example: Example, data: Dataset, points: list[int], seed: int) -> list[Json]:
    """Train up to the last of the points; the steps and weights at each point.

    Args:
        example: the training.
        data: to train on.
        points: numbers of steps in increasing order.
        seed: of batches and noise.
    """
    batches, found = Stream(data.splits["train"], example.batch, seed), list[Json]()
    torch.manual_seed(seed)
    for step in range(points[-1]):
        batch = batches(step)
        example.step(batch.x, torch.as_tensor(batch.label), step / points[-1])
        if step + 1 in points:
            found.append({"steps": step + 1, "weights": example.weights()})
            print(f"  {step + 1:,} steps", file=sys.stderr, flush=True)
    return found


@torch.no_grad()
def draw(example: Example, weights: dict[str, torch.Tensor], judge: Judge, seed: int) -> np.ndarray:
    """Records (N, H, W, C) by the peer's sampler."""
    example.net.load_state_dict(weights)
    example.net.eval()
    torch.manual_seed(seed)
    facts, parts = judge.data.facts, []
    for labels in torch.from_numpy(np.asarray(judge.labels, np.int64)).split(ROWS):
        with autocast():
            parts.append(from_x(example.sample(torch.randn(len(labels), *facts.shape), labels), facts))
    return np.concatenate(parts)


def train_peer(store: Store, peer: str, given: str, judge: Judge, ours: Json, seed: int) -> tuple[Json, np.ndarray]:
    """Train a peer and measure it; its result with all measured points, and its last samples."""
    data = judge.data
    run = store.find("runs", ours["run"])
    price = cost(example_of(peer, given, data, ours["batch"], seed), data, run, ROUNDS[given])
    steps = [max(1, round(multiple * ours["work"] / price.value)) for multiple in BUDGETS[given]]
    print(f"  {1000 * price.seconds:.0f} ms a step, genflow {1000 * price.base:.0f}", file=sys.stderr, flush=True)
    example = example_of(peer, given, data, ours["batch"], seed)
    parameters = sum(parameter.numel() for parameter in example.net.parameters())
    made = train(example, data, steps, seed)
    points: list[Json] = []
    shown = np.empty(0)
    for point in reversed(made):
        records = draw(example, point.pop("weights"), judge, seed)
        points.insert(0, {**point, "fd": judge.measure(records)})
        shown = shown if len(shown) else records
        print(f"  fd {points[0]['fd']['value']:.2f} after {point['steps']:,} steps", file=sys.stderr, flush=True)
        if points[0]["fd"]["value"] > ours["fd"]["value"]:
            break
    found = {"batch": example.batch, "parameters": parameters, "evaluations": example.evaluations}
    return {**found, "cost": asdict(price), "points": points, **points[-1]}, shown


def contest(folder: Path, data: str, peers: list[str], given: list[str], seed: int, seconds: float) -> None:
    """Run the missing trainings of a data set and a seed; a file each."""
    store = Store(folder / "store")

    @functools.cache
    def judge() -> Judge:  # only if a training is missing
        genflow.prepare(store=store, name=data, **DATA[data])
        return Judge(store, data)

    def once(name: str, how: str, make: Any) -> Json:
        file = folder / f"{data}-{name}-{how}-s{seed}.json"
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        print(f"{data}, seed {seed}: {name} {how}", file=sys.stderr, flush=True)
        result, records = make()
        result |= {"data": data, "name": name, "given": how, "seed": seed, "budget": seconds, "samples": SAMPLES}
        result |= {"format": FORMAT, "load": round(os.getloadavg()[0], 1)}
        write_atomically(file.with_suffix(".png"), render(records[:SHOWN], judge().data.facts, SHOWN // 4))
        write_atomically(file, (json.dumps(result) + "\n").encode())
        return dict(result)

    ours = once(OURS, "published", lambda: train_ours(store, judge(), data, seconds, seed))
    for how in given:
        for peer in peers:
            try:
                once(peer, how, lambda peer=peer, how=how: train_peer(store, peer, how, judge(), ours, seed))
            except ImportError as error:
                print(f"left out: {peer} ({error.name or error} is not installed)", file=sys.stderr)


def main() -> None:
    """Run what is missing, and write the section."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench.quality", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--given", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of genflow's training")
    parser.add_argument("--folder", type=Path, default=Path("build/quality"), help="results, and a store")
    parser.add_argument("--out", type=Path, help="page whose section is written; without it, it is printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    environment.tune_malloc()  # as genflow's own trainings do
    given.folder.mkdir(parents=True, exist_ok=True)
    for seed in map(int, given.seeds.split(",")):
        for data in given.data:
            contest(given.folder, data, given.peers, given.given, seed, given.seconds)
    section = quality_page.section(quality_page.read(given.folder))
    if given.out:
        quality_page.write(given.out, section)
    else:
        print(section)


if __name__ == "__main__":
    main()
