"""The Ray Serve application: replicas that answer requests and draw samples.

    proxy  ->  Sampler: genflow.serving.app and .service, one queue  ->  genflow.serving.engine_process (draws)

The proxy is HAProxy (`jobs.runtime.serve.haproxy`) if genflow started Ray, else Ray's own proxy with
`jobs.runtime.serve.retry_middleware`. A sample is a function of its seed. So if a replica dies, the proxy sends its
requests to another one, unless the first byte of the answer was already sent. Models change in place (Serve's
`user_config`): a replica loads the new models while it serves the old ones, and no replica restarts.
"""

import ipaddress
import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from genflow.serving import app as http_app
from genflow.serving.middleware import Limits, RequestLimitsMiddleware
from genflow.serving.model_list import ServedModel
from genflow.serving.responses import Reply
from genflow.serving.schemas import ModelRequest, PictureRequest, SampleRequest, Task
from genflow.system import environment, source_hash
from genflow.system.documents import Json
from genflow.system.source_hash import digest
from jobs.runtime import gpus
from jobs.runtime.serve.retry_middleware import MAX_PER_REPLICA

if TYPE_CHECKING:  # imports torch, which only the replicas need
    from genflow.serving.service import Service

SAMPLER = "Sampler"
BUCKETS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
PATH_TAGS = ("samples", "stream", "walks", "encode", "decode", "/", "/healthz", "/v1/models", "/v1/images/generations")


class Sampler:
    """A replica.

    Args:
        options: keyword arguments of `Service`.
        limits: limits on requests.
        threads: CPU threads for drawing, summed over all replicas.
        device: on which to draw; auto: the GPU that Ray gives the replica, else the CPU.
    """

    def __init__(self, options: Json, limits: Limits, threads: float, device: str = "auto") -> None:
        _bind_grpc_to_loopback()
        gpus.claim(device)  # for the engine process
        self._options, self._limits, self._threads = options, limits, threads
        self._service: Service | None = None
        tags, paths = ("model",), ("path", "status")
        self._requests = metrics.Counter("genflow_requests", description="Requests answered.", tag_keys=paths)  # type: ignore[arg-type]
        self._seconds = metrics.Histogram(
            "genflow_request_seconds", description="Seconds of a request.", boundaries=BUCKETS_S, tag_keys=("path",)
        )
        self._samples = metrics.Counter("genflow_samples", description="Samples drawn.", tag_keys=tags)
        self._evaluations = metrics.Counter("genflow_evaluations", description="Network evaluations.", tag_keys=tags)
        self._stage = metrics.Histogram(
            "genflow_stage_seconds", description="Seconds of a request in each stage: queue, draw, write.",
            boundaries=BUCKETS_S, tag_keys=("model", "stage"),  # type: ignore[arg-type]
        )  # fmt: skip
        self._rows = metrics.Histogram(
            "genflow_batch_rows", description="Samples in a batch.", boundaries=[1, 2, 4, 8, 16, 32, 48, 64],
            tag_keys=tags,
        )  # fmt: skip
        self._waiting = metrics.Gauge("genflow_waiting", description="Requests in the queue.")
        self._backlog = metrics.Gauge(
            "genflow_backlog_seconds", description="Estimated seconds until the queue is empty."
        )

    def __serve_build_asgi_app__(self) -> RequestLimitsMiddleware:
        """Return the HTTP app to which Ray sends the requests of this replica."""
        _configure_request_log()
        return http_app.create(self, self._limits, self._record_request)

    def _record_request(self, method: str, path: str, status: int, took: float) -> None:
        tag = path.rpartition("/")[2] if path.startswith("/v1/models/") else path
        tag = tag if tag in PATH_TAGS else "other"
        self._requests.inc(tags={"path": tag, "status": str(status)})
        self._seconds.observe(took, tags={"path": tag})

    async def reconfigure(self, config: Json) -> None:
        """Replace the served models; the first call starts the service and draws one sample."""
        from genflow.serving.service import Service

        entries = [ServedModel(**entry) for entry in config["models"]]
        if self._service is None:
            service = Service(entries, **self._options, on_engine_exit=_exit)
            # The engine process has started and keeps its priority, while this process, which answers requests, gets a
            # lower one. But if drawing uses every core, the engine process gets the lowest, so that requests are still
            # answered. The proxy keeps the highest, because it rejects requests over the limit.
            environment.lower_priority(10)
            if self._threads >= environment.cores():
                service.engine_process.lower_priority(15)
            await service.warm()
            self._service = service
            return
        try:
            await self._service.change(entries)
        except Exception:  # keep the old models; the deploying job notices the unchanged version
            logging.getLogger("ray.serve").exception("the new models cannot be served; the old models stay")

    @property
    def service(self) -> "Service":
        """The service, once `reconfigure` has started it."""
        assert self._service is not None
        return self._service

    async def answer(self, task: Task, name: str, request: ModelRequest | PictureRequest) -> Reply:
        """See `Service.answer`."""
        reply = await self.service.answer(task, name, request)
        if measurements := reply.measurements:
            tags = {"model": measurements["model"]}
            self._samples.inc(measurements["n"], tags=tags)
            self._evaluations.inc(max(1, measurements["n"] * measurements["nfe"]), tags=tags)
            for stage in ("queue", "draw", "write"):
                self._stage.observe(max(measurements[stage], 0.0), tags={**tags, "stage": stage})
            self._rows.observe(measurements["rows"], tags=tags)
        self._waiting.set(self.service.batcher.waiting)
        self._backlog.set(self.service.batcher.backlog())
        return reply

    async def stream(self, name: str, request: SampleRequest) -> AsyncIterator[bytes]:
        """See `Service.stream`."""
        async for event in self.service.stream(name, request):
            yield event

    async def cards(self) -> list[Json]:
        """See `Service.cards`."""
        return await self.service.cards()

    async def health(self) -> Json:
        """See `Service.health`."""
        return await self.service.health()

    def check_health(self) -> None:
        """Health check: Serve calls it every second, and replaces a replica that fails to answer three times."""
        try:
            if self._service is not None:
                self._service.check()
        except RuntimeError as error:  # it cannot recover, so exit at once
            logging.getLogger("ray.serve").error("this replica exits, and Serve starts another: %s", error)
            _exit()


def _bind_grpc_to_loopback() -> None:
    """If the node's address is the loopback, bind the replica's gRPC port to it, too; Ray 2.60 binds all interfaces.

    Ray opens the port after the replica's constructor has run, and connects to it by the node's address.
    """
    import ray
    from ray.serve._private import replica

    address = ray.util.get_node_ip_address()
    if ipaddress.ip_address(address).is_loopback:
        add = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, at: add(server, at.replace("[::]", address))


def _exit() -> None:
    """Exit the replica: the proxy sends its requests to another one, and Serve starts a replacement."""
    os._exit(1)


def application(inputs: Json) -> serve.Application:
    """Build the application.

    Args:
        inputs: `name` of the application, `models` (see `ServedModel`), and optionally `replicas`, `most_replicas`,
            `threads`, `gpus`, `device`, `memory_mb`, `deadline_s`, `keys`, `per_minute`, `docs`, `hosts`.
    """
    deadline_s = float(inputs.get("deadline_s", 60))
    replicas, most = int(inputs.get("replicas", 1)), int(inputs.get("most_replicas", 0))
    options = {"max_bytes": int(inputs.get("memory_mb", 2048)) << 20, "deadline_s": deadline_s}
    limits = Limits(
        keys=tuple(inputs.get("keys", ())), per_minute=int(inputs.get("per_minute", 0)), docs=inputs.get("docs", True),
        hosts=tuple(inputs.get("hosts", ())),
    )
    # without an explicit version, Ray restarts every replica at each deployment
    code = source_hash.code_of("jobs/runtime/serve/deployment.py", also=("genflow",))
    version = digest([code, {key: inputs[key] for key in inputs if key != "models"}])
    scale: Json = {"num_replicas": replicas}
    if most > replicas:
        scaling = AutoscalingConfig(
            min_replicas=replicas, max_replicas=most, target_ongoing_requests=16, upscale_delay_s=5,
            downscale_delay_s=60,
        )  # fmt: skip
        scale = {"autoscaling_config": scaling}
    replica: Any = serve.deployment(serve.ingress()(Sampler))
    sampler = replica.options(
        name=SAMPLER,
        user_config={"models": inputs["models"]},
        ray_actor_options={"num_cpus": inputs.get("threads", 1), "num_gpus": inputs.get("gpus", 0)},
        max_ongoing_requests=MAX_PER_REPLICA,  # the batcher's own queue is shorter, and estimates the waiting time
        max_queued_requests=MAX_PER_REPLICA,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        health_check_period_s=1,
        health_check_timeout_s=2,  # three timeouts, the period and a start take less than 15 s in total
        graceful_shutdown_timeout_s=deadline_s,
        graceful_shutdown_wait_loop_s=0.5,
        version=version,
        _internal=True,
        **scale,
    )
    threads = inputs.get("threads", 1) * max(replicas, most)
    return sampler.bind(options, limits, threads, inputs.get("device", "auto"))


def _configure_request_log() -> None:
    """Write the request log to the replica's log file of Serve, without a prefix."""
    log = logging.getLogger("genflow.serving")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = logging.getLogger("ray.serve").handlers


def build(args: Json) -> serve.Application:
    """Build the application that a Serve configuration file names, with `inputs` as its arguments.

    The file says `import_path: jobs.runtime.serve.deployment:build`.
    """
    return application(args)
