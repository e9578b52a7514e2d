"""Measure the cost of scale: Ray Train against the bare loop; workers and nodes; shards and images; commands.

    python -m benchmarks.scale [--data digits] [--steps 400] [--rounds 3] [--largest 10000000] [--out docs/scaling.md]

Every figure comes from its own process, in a temporary store. Configurations that are compared take turns, so that
other load on the machine affects all of them; ratios are ratios of medians over the rounds. The rate of a training is
that of its steady state: from the end of the first quarter of its log to the last line.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import scale_links, scale_plan
from benchmarks.scale_links import link, memory_mb, read_links
from genflow.system.documents import Json

ROOT = Path(__file__).parents[1]


# --- Parts, each run in its own process; each prints one JSON document


def bare(data: str, sets: list[str]) -> Json:
    """The training loop alone: no Ray, no journal, no checkpoint."""
    from genflow import runs
    from genflow.data.shards import Dataset
    from genflow.data.stream import Stream
    from genflow.storage.store import Store
    from genflow.training import loop
    from genflow.training.session import Session

    plan = _plan(data, sets)
    opened = Dataset.open(plan.dataset)
    family = runs.initial_family(Store(), plan.recipe, opened.facts)
    stream = Stream(runs.training_rows(Store(), plan.recipe, opened), plan.recipe.train.batch, plan.recipe.train.seed)
    seen: list[tuple[int, float]] = []
    session = Session(threads=1, log=lambda numbers: seen.append((numbers["step"], numbers["seconds"])))
    loop.fit(family, stream, session, plan.recipe.train, full_batches=stream)
    return {"images_per_second": _steady(seen, plan.recipe.train.batch)}


def trained(data: str, sets: list[str], nodes: int) -> Json:
    """Train as `genflow train` does: one worker in this process, or Ray Train's workers as in a job on a cluster."""
    from genflow.storage.store import Store
    from genflow.system import environment
    from genflow.tracking.journal import curves, journal_path
    from jobs import train
    from jobs.runtime.cluster import IN_A_JOB

    plan = _plan(data, sets)
    document = {"recipe": plan.recipe.model_dump(mode="json")}
    if nodes:
        environment.set_defaults()
        environment.configure_local_ray()
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4 // nodes, "include_dashboard": False})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=4 // nodes)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        os.environ |= {"GENFLOW_CLUSTER": "1", IN_A_JOB: "{}"}  # spread workers; run even one as a process
    train.main(document, lambda *_, **__: None)
    seen = [(step, seconds) for step, seconds in curves(journal_path(Store().root, plan.id))["train/seconds"]]
    return {"images_per_second": _steady(seen, plan.recipe.train.batch)}


def read(shards: int, images: int) -> Json:
    """Open a made dataset of 8x8 images and read it in random batches of 32."""
    import numpy as np

    from genflow.data.shards import Dataset
    from genflow.data.stream import Stream
    from genflow.storage.store import Store

    artifact = Store().find("datasets", f"made-{shards}-{images}")
    before = memory_mb()
    start = time.perf_counter()
    split = Dataset.open(artifact, verify=False).splits["train"]
    stream = Stream(split, 32, seed=0)
    stream(0)
    first = time.perf_counter() - start
    took = []
    for step in range(1, 501):
        start = time.perf_counter()
        stream(step)
        took.append(time.perf_counter() - start)
    own, mapped = (now - then for now, then in zip(memory_mb(), before, strict=True))
    start = time.perf_counter()
    artifact.verify()
    verified = time.perf_counter() - start
    return {
        "first_batch_s": first, "batch_ms": 1000 * float(np.median(took)), "own_mb": own, "mapped_mb": mapped,
        "verify_s": verified,
        "bytes": sum(file["size"] for file in artifact.manifest["files"].values()),
    }  # fmt: skip


def make(shards: int, images: int) -> Json:
    """Write the dataset that `read` opens, in the format of `prepare`, with the same noise in every shard."""
    import numpy as np

    from genflow.data.shard_format import shard_name, write_index, write_shard
    from genflow.specs import DataSpec
    from genflow.storage.store import Store

    facts = DataSpec(
        shape=(1, 8, 8), levels=256, class_names=("a", "b"), splits={"train": images}, fingerprint=f"{shards}-{images}"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (images // shards, 8, 8, 1), np.uint8)
    labels = np.arange(len(pixels)) % 2
    names = [f"{row:08d}" for row in range(len(pixels))]
    with Store().stage("datasets", f"made-{shards}-{images}-0", name=f"made-{shards}-{images}") as staged:
        (staged.path / "train").mkdir()
        files = {shard_name(number, shards): len(pixels) for number in range(shards)}
        for file in files:
            write_shard(staged.path / "train" / file, facts, pixels, names, labels)
        write_index(staged.path, facts, {"train": files})
        staged.commit(meta={"facts": facts.to_json()})
    return {}


def planned() -> Json:
    """The pieces of a training on 64 GPUs (benchmarks/scale_plan.py)."""
    return scale_plan.plan()


PARTS: dict[str, Callable[..., Json]] = {
    part.__name__: part for part in (bare, trained, make, read, link, read_links, planned)
}


def _plan(data: str, sets: list[str]) -> Any:
    from genflow import runs
    from genflow.recipe.compose import assignments, compose
    from genflow.storage.store import Store

    return runs.plan(Store(), compose("flow_matching", {"data": {"name": data}}, assignments(sets)))


def _steady(seen: list[tuple[int, float]], batch: int) -> float:
    (first, begun), (last, ended) = seen[len(seen) // 4], seen[-1]
    return (last - first) * batch / (ended - begun)


# --- The benchmark


class Bench:
    """The measurements, in a temporary store.

    Args:
        asked: the command's arguments.
        folder: the store's folder.
    """

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self._environment = {
            **os.environ, "GENFLOW_STORE": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._number = 0

    def part(self, part: str, *arguments: str) -> Json:
        """Run a part in its own process."""
        print(f"{part} {' '.join(arguments)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.scale", "--part", part, "--arguments", json.dumps(arguments)]
        done = subprocess.run(
            command, env=self._environment, cwd=ROOT, stdout=subprocess.PIPE, check=True, encoding="utf-8"
        )
        found: Json = json.loads(done.stdout.splitlines()[-1])
        return found

    def rates(self, configurations: dict[str, Callable[[list[str]], Json]]) -> dict[str, list[float]]:
        """Images a second of configurations that take turns."""
        found: dict[str, list[float]] = {name: [] for name in configurations}
        for _ in range(self.asked.rounds):
            for name, run in configurations.items():
                self._number += 1  # a new seed; otherwise the run would already be finished
                sets = [f"train.steps={self.asked.steps}", f"train.seed={self._number}", "train.log_every=10"]
                found[name].append(run(sets)["images_per_second"])
        return found

    def trained(self, sets: list[str], workers: int = 1, nodes: int = 0) -> Json:
        """`genflow train` with a number of workers on a number of nodes."""
        sets = [*sets, f"cluster.workers={workers}", f"name=w{workers}-{self._number}"]
        return self.part("trained", self.asked.data, json.dumps(sets), str(nodes))

    def bare(self, sets: list[str]) -> Json:
        """The training loop alone."""
        return self.part("bare", self.asked.data, json.dumps(sets))

    def command(self, *arguments: str) -> float:
        """The seconds that a command takes: the median of the rounds."""
        took = []
        for _ in range(self.asked.rounds):
            start = time.perf_counter()
            command = [sys.executable, "-m", "genflow.cli", *arguments]
            subprocess.run(command, env=self._environment, cwd=self.folder, capture_output=True, check=True)
            took.append(time.perf_counter() - start)
        return statistics.median(took)

    def reading(self) -> list[Json]:
        """Different numbers of shards with the same images, and of images with the same number of shards."""
        largest = self.asked.largest
        sizes = [(shards, largest // 10) for shards in (10, 100, 1000, 10_000, 100_000) if shards <= largest // 10]
        sizes += [(100, images) for images in (10**4, 10**5, 10**6, 10**7) if images <= largest]
        rows = []
        for shards, images in dict.fromkeys(sizes):
            self.part("make", str(shards), str(images))
            rows.append({"shards": shards, "images": images, **self.part("read", str(shards), str(images))})
            shutil.rmtree(next((self.folder / "datasets").glob(f"made-{shards}-{images}-*")))
        return rows

    def starting(self) -> Json:
        """The seconds that commands take; for a training of 20 steps and for serving, each part."""
        found: Json = {
            "genflow --help": {"in all": self.command("--help")},
            "genflow runs ls": {"in all": self.command("runs", "ls")},
            "genflow data show": {"in all": self.command("data", "show", self.asked.data)},
        }
        for workers in (1, 2):
            names = [f"start-{workers}-{number}" for number in range(self.asked.rounds)]
            rounds = [self._start_of_training(name, self.asked.data, workers) for name in names]
            name = f"genflow train, 20 steps, {workers} worker{'s' if workers > 1 else ''}"
            found[name] = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
            del found[name]["peak_mb"]
        found["genflow sample -n 16"] = {"in all": self.command("sample", "start-1-0", "-n", "16")}
        served = [self._start_of_serving() for _ in range(self.asked.rounds)]
        found["genflow serve"] = {"until it answers": statistics.median(served)}
        return found

    def linked(self) -> list[Json]:
        """Up to ten million rows in hard links to one shard: reading them, and the start of a training."""
        rows = []
        for encoding, count in itertools.product(scale_links.ENCODINGS, scale_links.SIZES):
            if count > self.asked.largest:
                continue
            named = f"linked-{encoding}-{count}"
            self.part("link", encoding, str(count))
            found = self.part("read_links", encoding, str(count))
            names = [f"on-{named}-{number}" for number in range(self.asked.rounds)]
            started = [self._start_of_training(name, named, 1) for name in names]
            starts = [each["until the run has its name"] + each["until the first step"] for each in started]
            peaks = [each["peak_mb"] for each in started]
            rows.append({**found, "start_s": statistics.median(starts), "peak_mb": statistics.median(peaks)})
            shutil.rmtree(next((self.folder / "datasets").glob(f"{named}-*")))
        return rows

    def plan(self) -> Json:
        """What each part costs for 64 GPUs and 100 million pictures (benchmarks/scale_plan.py)."""
        return self.part("planned")

    def _start_of_training(self, run: str, data: str, workers: int) -> dict[str, float]:
        """The seconds of each part, from the times in the run's journal, and the largest process's memory in MB."""
        from genflow.tracking.journal import entries

        sets = ["train.steps=20", "train.log_every=20", f"cluster.workers={workers}"]
        command = ["train", "flow_matching", "--data", data, "--name", run]
        command += [word for set_ in sets for word in ("--set", set_)]
        begun = time.time()
        started = subprocess.Popen(
            [sys.executable, "-m", "genflow.cli", *command],
            env=self._environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(started.pid, 0)  # with the memory of the processes that it started
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise subprocess.CalledProcessError(started.returncode, command)
        ended = time.time()
        said = [line for _, line in entries(next((self.folder / "journals").glob(f"{run}-*.jsonl")))]
        at = {key: line["t"] / 1000 for line in said[::-1] for key in ("journal", "metrics", "model") if key in line}
        trained = next(line["metrics"]["train/seconds"] for line in said if "train/seconds" in line.get("metrics", {}))
        return {
            "until the run has its name": at["journal"] - begun,
            "until the first step": at["metrics"] - trained - at["journal"],
            "20 steps": trained,
            "picture and checkpoint": at["model"] - at["metrics"],
            "until the command returns": ended - at["model"],
            "peak_mb": usage.ru_maxrss / 1024,
        }

    def _start_of_serving(self) -> float:
        from benchmarks.serve import _until_it_answers
        from genflow.system import ports

        port, begun = ports.free_port(), time.perf_counter()
        command = [sys.executable, "-m", "genflow.cli", "serve", "start-1-0", "--port", str(port)]
        server = subprocess.Popen(
            command, env=self._environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _until_it_answers(port, server)
            return time.perf_counter() - begun
        finally:
            server.terminate()
            server.wait(timeout=120)


def measured(asked: argparse.Namespace, folder: Path) -> Json:
    """Measure; return the document."""
    from genflow.system import environment

    bench = Bench(asked, folder)
    if asked.only not in ("plan", "linked"):
        bench.command("prepare", asked.data)
    if asked.only:  # keep the other measurements of --out
        found: Json = json.loads(asked.out.with_suffix(".json").read_text(encoding="utf-8"))
        again = f"python -m benchmarks.scale --largest {asked.largest} --rounds {asked.rounds} --only {asked.only}"
        again = "python -m benchmarks.scale --only plan" if asked.only == "plan" else again
        commands = {**found.get("again", {}), asked.only: again}
        return {**found, asked.only: getattr(bench, asked.only)(), "again": commands}
    workers = bench.rates({str(n): lambda sets, n=n: bench.trained(sets, n) for n in (1, 2, 4)})  # type: ignore[misc]
    return {
        "schema": "genflow.scaling/1",
        "machine": f"{platform.system()} {platform.machine()}, {environment.cores()} cores, "
        f"load {os.getloadavg()[0]:.1f}",
        "command": f"python -m benchmarks.scale --data {asked.data} --steps {asked.steps} --rounds {asked.rounds} "
        f"--largest {asked.largest}",
        "data": asked.data, "steps": asked.steps, "rounds": asked.rounds,
        "overhead": bench.rates(
            {
                "bare": bench.bare,
                "genflow train": bench.trained,
                "genflow train --cluster": lambda sets: bench.trained(sets, 1, 1),
            }
        ),
        "workers": workers,
        "nodes": bench.rates({str(n): lambda sets, n=n: bench.trained(sets, 2, n) for n in (1, 2)}),  # type: ignore[misc]
        "reading": bench.reading(),
        "linked": bench.linked(),
        "starting": bench.starting(),
        "plan": bench.plan(),
    }  # fmt: skip


def page(document: Json) -> str:
    """The document as Markdown."""
    lines = [
        "# Scaling", "",
        f"Written by `{document['command']}`; no number is typed by hand. "
        f"{document['machine']}; {document['data']}, {document['steps']} steps per run, {document['rounds']} rounds.",
        *(f"`{part}` was measured later, by `{by}`." for part, by in document.get("again", {}).items()), "",
        "## Ray Train against the bare loop", "",
        "One worker, images per second in the steady state: the median over the rounds (smallest, largest). On a "
        "cluster the worker is a process of Ray Train, in addition to Ray Train's controller.", "",
        *_rates(document["overhead"], "bare", "configuration"), "",
        "## Workers", "",
        "One global batch, divided among the workers. If there are more workers than cores, they share the cores.", "",
        *_rates(document["workers"], "1", "workers"), "",
        "## Nodes", "",
        "Two workers on one node, and on two. The nodes are raylets of one machine, so the network is loopback.", "",
        *_rates(document["nodes"], "1", "nodes"), "",
        "## Shards and images", "",
        "500 random batches of 32 pictures of 8x8. Memory is the growth of the process's own memory; mapped is the "
        "growth in pages of the shards, which the workers of a machine share and the kernel can reclaim. Verifying "
        "reads all files.", "",
        "| shards | images | MB | first batch, s | a batch, ms | memory, MB | mapped, MB | verifying, s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {row['shards']:,} | {row['images']:,} | {row['bytes'] / 1e6:,.0f} | {row['first_batch_s']:.2f} "
            f"| {row['batch_ms']:.2f} | {row['own_mb']:.0f} | {row['mapped_mb']:.0f} | {row['verify_s']:.2f} |"
            for row in document["reading"]
        ), "",
        *(scale_links.section(document["linked"]) if "linked" in document else ()),
        "## Starting", "",
        "| command | part | seconds |", "|---|---|---:|",
        *(
            f"| {name} | {part} | {seconds:.2f} |"
            for name, parts in document["starting"].items()
            for part, seconds in parts.items()
        ), "",
        *(scale_plan.section(document["plan"]) if "plan" in document else ()),
    ]  # fmt: skip
    return "\n".join(lines)


def _rates(found: dict[str, list[float]], base: str, what: str) -> list[str]:
    usual = statistics.median(found[base])
    rows = [f"| {what} | images/s | ratio |", "|---|---:|---:|"]
    for name, rates in found.items():
        middle = statistics.median(rates)
        rows.append(f"| {name} | {middle:,.0f} ({min(rates):,.0f}, {max(rates):,.0f}) | {middle / usual:.3f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=10**7, help="images")
    only = ("reading", "linked", "starting", "plan")
    parser.add_argument("--only", choices=only, help="measure this again; keep the rest of --out")
    parser.add_argument("--out", type=Path, help="write the page here, and the document next to it as .json")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only and not asked.out:
        parser.error("--only needs --out, whose other measurements it keeps")
    if asked.part:
        given = [json.loads(word) if word.startswith("[") or word.isdigit() else word for word in asked.arguments]
        print(json.dumps(PARTS[asked.part](*given)))
        return
    with tempfile.TemporaryDirectory(prefix="gf-", dir="/tmp") as folder:  # Ray's sockets need short paths
        document = measured(asked, Path(folder))
    print(json.dumps(document, indent=1))
    if asked.out:
        asked.out.write_text(page(document), encoding="utf-8")
        asked.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
