"""Train on a cluster of nodes with logical GPUs, which come and are lost; write what happened to FOLDER/told.json.

    python gpu_nodes.py FOLDER STORE

The nodes are raylets on the loopback. Ray counts their GPUs, PyTorch finds none, and the workers compute on the CPU.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GENFLOW_CLUSTER": "1"}

import ray
from ray.cluster_utils import Cluster as Nodes

from genflow import runs
from genflow.errors import GenflowError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from genflow.training import sharded_checkpoint
from genflow.training.checkpoint import read_state
from genflow.training.checkpoint_folders import Checkpoints
from jobs.runtime.train import stop_signal, waiting, worker_group

FOLDER, told = Path(sys.argv[1]), {}
store = Store(sys.argv[2])
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
waiting.AGAIN_S = 1.0


def add(gpus: int) -> Any:
    return nodes.add_node(num_cpus=gpus, num_gpus=gpus, object_store_memory=80_000_000)


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not true after {seconds:g} s"
        time.sleep(0.1)


def where(settings: dict[str, Any]) -> None:
    """In place of `work`: write on which node each worker is."""
    rank = ray.train.get_context().get_world_rank()
    (Path(settings["folder"]) / str(rank)).write_text(ray.get_runtime_context().get_node_id(), encoding="utf-8")


def placed(workers: int) -> list[str]:
    """The nodes of the workers, by rank."""
    folder = FOLDER / f"{workers}-workers"
    folder.mkdir()
    work, worker_group.work = worker_group.work, where
    recipe = {"train": {"compile": False}}
    settings = {"run": "where", "store": str(store.root), "folder": str(folder), "recipe": recipe}
    worker_group.run_on_ray(settings, Cluster(workers=workers), spread=True, gpus=1)
    worker_group.work = work
    return [(folder / str(rank)).read_text(encoding="utf-8") for rank in range(workers)]


def train(workers: int, steps: int = 10**6) -> str:
    """Train the run, and return its error, or an empty string."""
    layers = {"name": "sharded", "data": {"name": "digits"}, "net": {"kind": "mlp", "width": 16, "depth": 1}}
    layers["train"] = {"steps": steps, "batch": 16, "log_every": 10, "checkpoint_every": 50}
    recipe = compose("flow_matching", {**layers, "cluster": {"workers": workers, "strategy": "fsdp"}})
    settings = {"store": str(store.root), "recipe": recipe.model_dump(mode="json"), "run": run.id, "alone": False}
    try:
        worker_group.run_on_ray(settings, recipe.cluster, spread=True, gpus=1)
    except GenflowError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def newest() -> int:
    """The step of the newest checkpoint, or 0."""
    found = checkpoints.steps()
    return int(found[-1].name.removeprefix("step_")) if found else 0


def fit(run: Callable[[], Any], flag: Any, notify: Callable[[str], None]) -> None:
    """As `stop_signal.fit`; keeps the flag that stops the workers."""
    flags.append(flag)
    stop_signal.fit(run, flag, notify)


flags: list[Any] = []
worker_group.fit = fit
# as `ray_cluster` does: another Ray of this machine must not be taken for this one
ray.init(nodes.address, logging_level="ERROR", runtime_env={"env_vars": {"RAY_ADDRESS": nodes.address}})
run = runs.plan(store, compose("flow_matching", {"name": "sharded", "data": {"name": "digits"}}))
runs.create_folder(store, run)
checkpoints = Checkpoints(store.folder("runs", run.id) / "checkpoints")
pair = add(2)
ones = [add(1), add(1)]
nodes.wait_for_nodes()
told["pair"], told["ones"] = pair.node_id, [node.node_id for node in ones]
told["3 workers"] = placed(3)
nodes.remove_node(pair)
with ThreadPoolExecutor(1) as pool:  # the nodes' signal handlers require the main thread
    training = pool.submit(train, 2)
    wait_for(newest)
    nodes.remove_node(ones.pop(), allow_graceful=False)
    lost = time.monotonic()
    wait_for(lambda: time.monotonic() > lost + 8)  # within it, Ray has seen that the node is lost
    told["lost after"], told["shards"] = newest(), sharded_checkpoint.is_in(checkpoints.steps()[-1])
    ones.append(add(1))
    wait_for(lambda: newest() > told["lost after"], seconds=600)
    ray.get(flags[-1].set.remote())
    told["stopped"] = training.result()
told["stopped at"] = newest()
nodes.remove_node(ones.pop())
worker_group.START_S = 6
told["too few"] = train(2)
worker_group.START_S = 1800
told["alone"] = train(1, steps=told["stopped at"] + 20)
told["ended at"] = read_state(checkpoints.steps()[-1])["step"]
told["whole"] = not sharded_checkpoint.is_in(checkpoints.steps()[-1])
(FOLDER / "told.json").write_text(json.dumps(told), encoding="utf-8")
ray.shutdown()
nodes.shutdown()
