"""The Ray Serve application: `Sampler` replicas that draw, and before them `Http` replicas that answer the browser.

    proxy (Ray's)  ->  Http: genflow.serving.app  ->  Sampler: genflow.serving.service, one queue and one thread each

A sample is a function of its seed, so a request whose replica dies is simply sent again: by `Http` where a Sampler
died, by `jobs.proxy` in the proxy where an Http replica did, in both cases before the first byte was sent. Models
change in place (Serve's `user_config`): a replica loads the new ones beside the old ones, and nothing restarts.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from genflow import code, env
from genflow.recipe import digest
from genflow.serving import app as http_app
from genflow.serving.entries import Entry
from genflow.serving.guard import Limits
from genflow.serving.replies import Refused, Reply
from genflow.serving.requests import Task

if TYPE_CHECKING:  # with torch: only where something is drawn
    from genflow.serving.service import Service

Document = dict[str, Any]

HTTP, SAMPLER = "Http", "Sampler"
ROOMS = ("genflow", "jobs/replicas.py")
BUSY = 256  # requests in an Http replica; what is more waits in the proxy, in a queue of the same length
FULL_S = 0.25  # for which a full queue, of seconds, is taken to be full still
TRIES = 6
DIED = (RayActorError, DeploymentUnavailableError)
BOUNDS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]


class Sampler:
    """A replica that draws.

    Args:
        options: of `Service`.
    """

    def __init__(self, options: Document) -> None:
        self._options = options
        self._service: Service | None = None
        tags = ("model",)
        self._samples = metrics.Counter("genflow_samples", description="Samples drawn.", tag_keys=tags)
        self._evaluations = metrics.Counter("genflow_evaluations", description="Network evaluations.", tag_keys=tags)
        self._stage = metrics.Histogram(
            "genflow_stage_seconds", description="Seconds of a request by stage: queue, draw, write.",
            boundaries=BOUNDS_S, tag_keys=("model", "stage"),  # type: ignore[arg-type]
        )  # fmt: skip
        self._rows = metrics.Histogram(
            "genflow_batch_rows", description="Samples of a batch.", boundaries=[1, 2, 4, 8, 16, 32, 48, 64],
            tag_keys=tags,
        )  # fmt: skip
        self._waiting = metrics.Gauge("genflow_waiting", description="Requests in the queue.")
        self._backlog = metrics.Gauge("genflow_backlog_seconds", description="Seconds until the queue is drawn.")

    async def reconfigure(self, config: Document) -> None:
        """Serve these models from now on; the first time, load and try them."""
        from genflow.serving.service import Service

        entries = [Entry(**entry) for entry in config["models"]]
        if self._service is None:
            service = Service(entries, **self._options)
            await service.warm()
            self._service = service
            return
        try:
            await self._service.change(entries)
        except Exception:  # the old ones stay; the job that deploys sees that the version did not change
            logging.getLogger("ray.serve").exception("the new models cannot be served, and the old ones stay")

    @property
    def service(self) -> "Service":
        """The models and their queue."""
        assert self._service is not None
        return self._service

    async def answer(self, task: Task, name: str, request: Document) -> Reply:
        """See `Service.answer`."""
        reply = await self.service.answer(task, name, request)
        if facts := reply.facts:
            tags = {"model": facts["model"]}
            self._samples.inc(facts["n"], tags=tags)
            self._evaluations.inc(max(1, facts["n"] * facts["nfe"]), tags=tags)
            for stage in ("queue", "draw", "write"):
                self._stage.observe(max(facts[stage], 0.0), tags={**tags, "stage": stage})
            self._rows.observe(facts["rows"], tags=tags)
        self._waiting.set(self.service.batcher.waiting)
        self._backlog.set(self.service.batcher.backlog())
        return reply

    async def stream(self, name: str, request: Document) -> AsyncIterator[bytes]:
        """See `Service.stream`."""
        async for event in self.service.stream(name, request):
            yield event

    async def cards(self) -> list[Document]:
        """See `Service.cards`."""
        return await self.service.cards()

    async def health(self) -> Document:
        """See `Service.health`."""
        return await self.service.health()

    def check_health(self) -> None:
        """Serve asks this every second; it raises if the drawing thread hangs, and does not answer if all does."""
        if self._service is not None:
            self._service.check()


class Replicas:
    """The `Backend` that asks Sampler replicas, and asks again where one died.

    Args:
        handle: of the Sampler deployment.
        deadline_s: after which a request is given up.
    """

    def __init__(self, handle: DeploymentHandle, deadline_s: float) -> None:
        self._handle, self._deadline_s = handle, deadline_s
        self._full: Reply | None = None  # what was said when the queue was full, for a moment
        self._full_until = 0.0
        self._streaming = handle.options(stream=True)

    async def answer(self, task: Task, name: str, request: Document) -> Reply:
        """See `Backend`."""
        if self._full and time.monotonic() < self._full_until:
            return self._full
        reply = await self._ask(lambda: self._handle.answer.remote(task, name, request), self._deadline_s)
        if reply.status == 503:
            self._full, self._full_until = reply, time.monotonic() + FULL_S
        return reply

    async def cards(self) -> list[Document]:
        """See `Backend`."""
        return await self._ask(lambda: self._handle.cards.remote(), 10.0)

    async def health(self) -> Document:
        """See `Backend`."""
        return await self._ask(lambda: self._handle.health.remote(), 5.0)

    async def _ask(self, call: Callable[[], Any], seconds: float) -> Any:
        give_up = time.monotonic() + seconds
        for attempt in range(TRIES):
            response = call()
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + give_up - time.monotonic()):
                    return await response
            except BackPressureError as error:
                raise Refused(503, "too many requests wait already", hint="try again", retry_after=1) from error
            except TimeoutError as error:
                response.cancel()
                raise Refused(503, f"not answered in {seconds:.0f} s", hint="try again", retry_after=1) from error
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (*DIED, RayTaskError) as error:
                if not _died(error) or attempt == TRIES - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    async def stream(self, name: str, request: Document) -> AsyncIterator[bytes]:
        """See `Backend`. Events are a function of the seed, too: after a death, those that were sent are left out."""
        sent = 0
        for attempt in range(TRIES):
            events: Any = self._streaming.stream.remote(name, request)
            seen = 0
            try:
                async for event in events:
                    seen += 1
                    if seen > sent:
                        yield event
                        sent = seen
                return
            except BackPressureError:
                refused = Refused(503, "too many requests wait already", hint="try again", retry_after=1)
                yield b"event: error\ndata: " + refused.reply().body + b"\n\n"
                return
            except (asyncio.CancelledError, GeneratorExit):
                events.cancel()
                raise
            except (*DIED, RayTaskError) as error:
                if not _died(error) or attempt == TRIES - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)


def _died(error: BaseException) -> bool:
    """Whether a replica died, rather than its code."""
    cause = getattr(error, "cause", None)
    return isinstance(error, DIED) or isinstance(cause, DIED)


def application(inputs: Document) -> serve.Application:
    """The application of a deployment's inputs.

    Args:
        inputs: `name` of the application, `models` (see `Entry`), and optionally `replicas`, `most_replicas`,
            `threads`, `gpus`, `memory_mb`, `deadline_s`, `keys`, `per_minute`, `docs`.
    """
    name, deadline_s = inputs["name"], float(inputs.get("deadline_s", 60))
    replicas, most = int(inputs.get("replicas", 1)), int(inputs.get("most_replicas", 0))
    options = {"most_bytes": int(inputs.get("memory_mb", 2048)) << 20, "deadline_s": deadline_s}
    limits = Limits(
        keys=tuple(inputs.get("keys", ())), per_minute=int(inputs.get("per_minute", 0)), docs=inputs.get("docs", True)
    )
    # Ray would restart every replica at each deployment; of the same code with the same options none has to
    version = digest([code.fingerprint(*ROOMS), {key: inputs[key] for key in inputs if key != "models"}])
    scale: Document = {"num_replicas": replicas}
    if most > replicas:
        scaling = AutoscalingConfig(
            min_replicas=replicas, max_replicas=most, target_ongoing_requests=16, upscale_delay_s=5,
            downscale_delay_s=60,
        )  # fmt: skip
        scale = {"autoscaling_config": scaling}
    sampler = _deployment(Sampler).options(
        name=SAMPLER,
        user_config={"models": inputs["models"]},
        ray_actor_options={"num_cpus": inputs.get("threads", 1), "num_gpus": inputs.get("gpus", 0)},
        max_ongoing_requests=192,  # its own queue is shorter, and knows how long it will take
        health_check_period_s=1,
        health_check_timeout_s=2.5,
        graceful_shutdown_timeout_s=deadline_s,
        graceful_shutdown_wait_loop_s=0.5,
        version=version,
        _internal=True,
        **scale,
    )

    def http() -> Any:
        paths = ("path", "status")
        requests = metrics.Counter("genflow_requests", description="Requests answered.", tag_keys=paths)  # type: ignore[arg-type]
        seconds = metrics.Histogram(
            "genflow_request_seconds", description="Seconds of a request.", boundaries=BOUNDS_S, tag_keys=("path",)
        )

        def seen(method: str, path: str, status: int, took: float) -> None:
            kind = path.rpartition("/")[2] if path.startswith("/v1/models/") else path
            kind = kind if kind in KINDS else "other"
            requests.inc(tags={"path": kind, "status": str(status)})
            seconds.observe(took, tags={"path": kind})

        _write_log_lines()
        env.stand_back()  # on few cores it would take half of that of the drawing
        handle = serve.get_deployment_handle(SAMPLER, app_name=name)
        return http_app.create(Replicas(handle, deadline_s), limits, seen)

    front = _deployment(serve.ingress(http)()).options(
        name=HTTP,
        num_replicas=max(1, int(inputs.get("http_replicas", 2))),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=BUSY,
        max_queued_requests=BUSY,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        health_check_period_s=1,
        health_check_timeout_s=2.5,
        graceful_shutdown_timeout_s=deadline_s,
        graceful_shutdown_wait_loop_s=0.5,
        version=version,
        _internal=True,
    )
    return front.bind(sampler.bind(options))


def _deployment(kind: Any) -> Any:
    return serve.deployment(kind)


KINDS = ("samples", "stream", "walks", "encode", "decode", "/", "/healthz", "/v1/models", "/v1/images/generations")


def _write_log_lines() -> None:
    """Request lines go where Serve keeps a replica's log, as they are."""
    log = logging.getLogger("genflow.serving")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = logging.getLogger("ray.serve").handlers


def build(args: Document) -> serve.Application:
    """What a Serve configuration file names: `import_path: jobs.replicas:build`, with `inputs` as its arguments."""
    return application(args)
