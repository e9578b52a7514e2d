"""Several workers of a training run: start them with Ray Train, wait, and explain errors.

One worker on one device needs no Ray: `jobs/train.py` runs `worker.work` in its own process. In both cases checkpoints
are genflow's own, in the store; Ray restarts workers that die, and all of them resume from the newest valid checkpoint.
"""

import contextlib
import fcntl
import importlib
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

from genflow.errors import ClusterError, GenflowError, ResourceError, is_out_of_memory
from genflow.evaluation.metrics.base import duration
from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from genflow.system import events
from genflow.training.workers import WorkerError
from jobs.runtime import resources
from jobs.runtime.train import waiting
from jobs.runtime.train.stop_signal import StopFlag, fit
from jobs.runtime.train.worker import work

START_TIMEOUT, START_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 1800  # a spot GPU node takes up to 20 minutes
START_TRIES = 6  # of Ray Train's controller
ANSWER_S = 45  # a worker waits so long for the gradients of another one
COMPILING_S = 900  # and so long with torch.compile, for which some workers take longer than others
LOG_DRAIN_S = 1.0  # time for the node's log monitor to forward the last output of the workers
SIOCGIFADDR = 0x8915  # Linux ioctl: get an interface's address


def run_on_ray(settings: dict[str, Any], cluster: Cluster, *, spread: bool, gpus: float = 0) -> None:
    """Run several workers on the Ray that this process is connected to.

    Args:
        settings: for `worker.work`.
        cluster: the number of workers, and the CPUs of each.
        spread: place the workers on as many nodes as possible, instead of as few; with GPUs they are always on as few,
            because gradients travel faster within a node.
        gpus: GPUs of each worker.

    Raises:
        GenflowError: a worker raised it; such an error is not retried.
        ResourceError: the cluster has no resources for a worker, or a worker ran out of memory.
        KeyboardInterrupt: the run was asked to stop; the workers have saved.
    """
    name = f"{settings['run']}-{time.time_ns():x}"  # a new name every time: Ray does not resume
    store = Store(settings["store"])
    # mypy uses the signatures of Ray Train V1
    failures = FailureConfig(max_failures=cluster.retries, controller_failure_limit=START_TRIES - 1)  # type: ignore[call-arg]
    stop_flag = StopFlag.remote()  # type: ignore[attr-defined]
    if os.environ.get("GENFLOW_CLUSTER"):  # its nodes start when they are needed
        os.environ[START_TIMEOUT] = str(START_S // START_TRIES)
    limit_s = START_TRIES * float(os.environ.get(START_TIMEOUT, 60))
    trainer = Trainer(
        work,
        train_loop_config={**settings, "stop_flag": stop_flag, "gpus": gpus},
        torch_config=NamedInterface(timeout_s=COMPILING_S if settings["recipe"]["train"]["compile"] else ANSWER_S),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cluster.cpus, **({"GPU": gpus} if gpus else {})},
            placement_strategy="SPREAD" if spread and not gpus else "PACK",
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
        with waiting.announced(cluster, gpus, limit_s):
            fit(trainer.fit, stop_flag, lambda text: events.emit("note", message=text))
    except Exception as error:
        raise explain(error, cluster, gpus, limit_s) from error
    finally:
        time.sleep(LOG_DRAIN_S)
        resources.delete_storage(store, name)


class Trainer(TorchTrainer):
    """Ray's trainer without the process for Ray Data's datasets; genflow's datasets are memory-mapped files."""

    def _create_default_callbacks(self) -> list[Any]:
        # mypy uses Ray Train V1
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in made if not isinstance(each, DatasetsCallback)]


class StopOnUserError(UserCallback):
    """Do not retry an error that the user must fix: raise it in the controller, which ends the run.

    For any other error emit a note; Ray then restarts all workers from the newest checkpoint.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            for cause in causes(error):
                if isinstance(cause, GenflowError):
                    raise cause
        failed = failed_workers(worker_exceptions)
        events.emit("note", message=f"{failed}; all workers resume from the newest checkpoint")


def failed_workers(errors: dict[int, Exception]) -> str:
    """The ranks that hung, ran out of memory or died, in one line, without ranks that only lost the others."""
    for error in errors.values():
        if named := next((cause for cause in causes(error) if isinstance(cause, WorkerError)), None):
            return str(named)
    hung = [rank for rank, error in errors.items() if type(error).__name__ == "WorkerHealthCheckTimeoutError"]
    dead = [rank for rank, error in errors.items() if type(error).__name__ == "WorkerHealthCheckFailedError"]
    if hung:
        return f"worker {', '.join(map(str, hung))} hangs"
    if any(is_out_of_memory(cause) for error in errors.values() for cause in causes(error)):
        return f"worker {', '.join(map(str, dead or errors))} ran out of memory"
    return f"worker {', '.join(map(str, dead or errors))} died"


class NamedInterface(TorchConfig):
    """A process group over the network interface of the node's address in Ray.

    By default gloo resolves the host name, which on many systems is 127.0.1.1; then workers on different nodes wait for
    each other until they time out. By default torch's rendezvous store listens on all interfaces.
    """

    @property
    def backend_cls(self) -> type:
        inner = super().backend_cls

        class Backend(inner):  # type: ignore[misc, valid-type]
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                worker_group.execute(name_interface)
                worker_group.execute(bind_store_to_address)
                if not all(worker_group.execute(has_cuda)):  # Ray chooses NCCL by the resources alone
                    backend_config.backend = "gloo"
                super().on_start(worker_group, backend_config)

        return Backend


def name_interface() -> None:
    """On a worker: set the interface of gloo and of NCCL, unless they are set."""
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def has_cuda() -> bool:
    """On a worker: whether PyTorch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


def bind_store_to_address() -> None:
    """On a worker: make torch's rendezvous store listen only on the address that workers connect to.

    torch has no setting for this and binds `::`, also in local mode; but it accepts a socket that already listens.
    """
    from torch.distributed import TCPStore

    rendezvous = importlib.import_module("torch.distributed.rendezvous")  # torch has a function of the same name

    def store(host: str, port: int, rank: int, world: int, timeout: Any, use_libuv: bool = True) -> TCPStore:
        if rank:
            return TCPStore(host, port, world, False, timeout)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        return TCPStore(host, port, world, True, timeout, master_listen_fd=listener.detach())

    assert hasattr(rendezvous, "_create_c10d_store")
    setattr(rendezvous, "_create_c10d_store", store)  # noqa: B010  mypy does not know the attribute


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None if there is none."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            request = struct.pack("256s", name.encode()[:15])
            if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]) == address:
                return name
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an error and all errors that Ray wrapped in it."""
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


def explain(error: BaseException, cluster: Cluster, gpus: float = 0, limit_s: float = START_S) -> GenflowError:
    """Convert the error of a run to one line: the user's error, a lack of memory or resources, or the last cause."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, GenflowError):
            return cause
    if any(is_out_of_memory(cause) for cause in chain):
        return ResourceError("a worker ran out of memory", "try a smaller --set train.batch, or more --workers")
    if any(type(cause).__name__ == "WorkerGroupStartupTimeoutError" for cause in chain):
        why = f"after {duration(limit_s)} the cluster has no room for {waiting.asked(cluster, gpus)}"
        return ResourceError(why, "wait for other jobs or more nodes, or use fewer --workers; the run then resumes")
    if fault := next((cause for cause in chain if isinstance(cause, WorkerError)), None):
        return ClusterError(str(fault), "run the same command again: it resumes from the newest checkpoint")
    last = chain[-1]
    text = str(last).strip().splitlines()
    how = f"{type(last).__name__}: {text[0]}" if text else type(last).__name__
    return GenflowError(f"the workers died {cluster.retries + 1} times: {how}", "run it again with -v for their output")
