"""The workers of a training run as a group: start them with Ray Train, wait, and say what ended them.

One worker on one device needs no cluster: Ray Train's local mode enters the loop at once, in this process.
Checkpoints are genflow's own in every mode, in the store; Ray restarts workers that die, and all of them go on
from the newest checkpoint that verifies.
"""

import contextlib
import fcntl
import importlib
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

from genflow.errors import GenflowError, ResourceError, is_out_of_memory
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from genflow.system import events
from jobs.runtime import resources
from jobs.runtime.train.stop_signal import StopFlag, fit
from jobs.runtime.train.worker import work

LOG_DRAIN_S = 1.0  # what workers print passes through their node's log monitor
SIOCGIFADDR = 0x8915  # ask Linux for an interface's address


def run_in_process(settings: dict[str, Any]) -> None:
    """One worker in this process: Ray Train without a cluster.

    Args:
        settings: for `worker.work`.
    """
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its informational lines are for Ray's developers
    try:
        TorchTrainer(work, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=0)).fit()
    finally:
        logger.setLevel(level)


def run_on_ray(settings: dict[str, Any], cluster: Cluster, *, spread: bool) -> None:
    """Several workers on the Ray that this process is connected to.

    Args:
        settings: for `worker.work`.
        cluster: how many, and what each of them gets.
        spread: over as many nodes as there are, rather than over as few.

    Raises:
        GenflowError: what a worker ended with; such an error is not tried again.
        ResourceError: a worker got no place, or no memory.
        KeyboardInterrupt: somebody asked to stop; the workers have saved.
    """
    name = f"{settings['run']}-{time.time_ns():x}"  # the store resumes, not Ray: a fresh name every time
    store = Store(settings["store"])
    # mypy reads the signatures of Ray Train's first version
    failures = FailureConfig(max_failures=cluster.retries, controller_failure_limit=5)  # type: ignore[call-arg]
    stop_flag = StopFlag.remote()  # type: ignore[attr-defined]
    trainer = Trainer(
        work,
        train_loop_config={**settings, "stop_flag": stop_flag},
        torch_config=NamedInterface(),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus > 0,
            resources_per_worker={"CPU": cluster.cpus, **({"GPU": cluster.gpus} if cluster.gpus else {})},
            placement_strategy="SPREAD" if spread else "PACK",
        ),
        run_config=RunConfig(
            name=name,
            **resources.storage(store),
            failure_config=failures,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[StopOnUserError()],  # type: ignore[list-item]
        ),
    )
    try:
        fit(trainer.fit, stop_flag, lambda text: events.emit("note", message=text))
    except Exception as error:
        raise explain(error, cluster) from error
    finally:
        time.sleep(LOG_DRAIN_S)
        resources.delete_storage(store, name)


class Trainer(TorchTrainer):
    """Ray's, without the process that hands out Ray Data's datasets: genflow's are files, which every worker maps."""

    def _create_default_callbacks(self) -> list[Any]:
        # mypy reads the first version of Ray Train
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in made if not isinstance(each, DatasetsCallback)]


class StopOnUserError(UserCallback):
    """What a person has to mend is not tried again. Raised in the controller, it ends the run.

    Anything else is said in a line, and all workers go on from the newest checkpoint.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            for cause in causes(error):
                if isinstance(cause, GenflowError):
                    raise cause
        events.emit("note", message=f"{failed_workers(worker_exceptions)}; all go on from the newest checkpoint")


def failed_workers(errors: dict[int, Exception]) -> str:
    """What became of workers, by rank, in a line: those that hung or died rather than those that lost them."""
    hung = [rank for rank, error in errors.items() if type(error).__name__ == "WorkerHealthCheckTimeoutError"]
    dead = [rank for rank, error in errors.items() if type(error).__name__ == "WorkerHealthCheckFailedError"]
    if hung:
        return f"worker {', '.join(map(str, hung))} hangs"
    if any(is_out_of_memory(cause) for error in errors.values() for cause in causes(error)):
        return f"worker {', '.join(map(str, dead or errors))} ran out of memory"
    return f"worker {', '.join(map(str, dead or errors))} died"


class NamedInterface(TorchConfig):
    """A process group over the network interface that has the node's address in Ray.

    gloo by itself asks for the host's name, which many systems answer with 127.0.1.1; then workers on different
    nodes wait for each other until they time out. torch's store, by which they meet, by itself listens everywhere.
    """

    @property
    def backend_cls(self) -> type:
        inner = super().backend_cls

        class Backend(inner):  # type: ignore[misc, valid-type]
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                worker_group.execute(set_gloo_interface)
                worker_group.execute(bind_store_to_address)
                super().on_start(worker_group, backend_config)

        return Backend


def set_gloo_interface() -> None:
    """On a worker: set GLOO_SOCKET_IFNAME, unless it is set."""
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def bind_store_to_address() -> None:
    """On a worker: torch's store listens on the address that it is reached by, and on no other interface.

    torch has no setting for it, and binds `::`, in local mode too; but it takes a socket that listens already.
    """
    from torch.distributed import TCPStore

    rendezvous = importlib.import_module("torch.distributed.rendezvous")  # torch gives a function its name

    def store(host: str, port: int, rank: int, world: int, timeout: Any, use_libuv: bool = True) -> TCPStore:
        if rank:
            return TCPStore(host, port, world, False, timeout)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        return TCPStore(host, port, world, True, timeout, master_listen_fd=listener.detach())

    assert hasattr(rendezvous, "_create_c10d_store")
    setattr(rendezvous, "_create_c10d_store", store)  # noqa: B010  mypy knows no such attribute


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where that cannot be known."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            request = struct.pack("256s", name.encode()[:15])
            if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]) == address:
                return name
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and everything that Ray wrapped in it."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [getattr(current, name, None) for name in ("controller_failure", "cause", "_base_exc", "__cause__")]
        inner += list((getattr(current, "worker_failures", None) or {}).values())
        waiting += [part for part in inner if isinstance(part, BaseException)]


def explain(error: BaseException, cluster: Cluster) -> GenflowError:
    """What ended the workers, in one line."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, GenflowError):
            return cause
    if any(is_out_of_memory(cause) for cause in chain):
        return ResourceError("a worker ran out of memory", "try a smaller --set train.batch, or more --workers")
    if any(type(cause).__name__ == "WorkerGroupStartupTimeoutError" for cause in chain):
        asked = f"{cluster.workers} workers with {cluster.cpus:g} CPU and {cluster.gpus:g} GPU each"
        return ResourceError(f"{asked} found no place on the cluster", "wait for other jobs, or use fewer --workers")
    last = chain[-1]
    text = str(last).strip().splitlines()
    how = f"{type(last).__name__}: {text[0]}" if text else type(last).__name__
    return GenflowError(f"the workers died {cluster.retries + 1} times: {how}", "run it again with -v for their output")
