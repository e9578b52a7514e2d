"""Serve models on Ray Serve until a signal stops the job, or change the models of a running application.

python -m jobs.serve recipe.yaml
"""

import contextlib
import os
import time

from genflow.errors import ClusterError, DataError, GenflowError, SetupError
from genflow.pipeline.results import Served
from genflow.recipe.schema import Cluster
from genflow.serving import endpoints
from genflow.serving.engine_cache import check_models
from genflow.serving.model_list import ServedModel, list_version, to_documents
from genflow.storage.store import Store
from genflow.system import devices, environment, http
from genflow.system.documents import Json
from jobs.runtime.cluster import is_submitted, ray_cluster
from jobs.runtime.entrypoint import Emit, execute
from jobs.runtime.serve import haproxy
from jobs.runtime.serve.retry_middleware import MAX_PER_REPLICA

READY_S = 120.0
DRAIN_S = 75.0  # Serve ends a replica that has not answered after 60 s
SERVE_VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.runtime.serve.retry_middleware:middlewares",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # otherwise Ray waits a minute for a hung replica
}


def main(document: Json, emit: Emit) -> Served:
    """Deploy `inputs.models` as the application `inputs.name`.

    First load every model and draw one sample from it here, so that a broken model never replaces a working one.

    Returns:
        A `genflow.serve/1` document, after the endpoint has ended or its models have changed.

    Raises:
        DataError: a model cannot be loaded or cannot draw.
        SetupError: Serve does not start.
    """
    inputs = document["inputs"]
    models = [ServedModel(**entry) for entry in inputs["models"]]
    device = inputs.get("device", "auto")
    if device != "auto":
        os.environ[devices.BY_USER] = device
    check_models(models)
    if inputs.get("running"):
        return change_models(inputs, models, emit)
    # Set before Ray starts, because its daemons inherit it. Clients wait for these workers: with Ray's default niceness
    # of 15, a training on the same machine would go first.
    replicas = max(inputs.get("replicas", 1), inputs.get("most_replicas", 0))
    os.environ |= SERVE_VARIABLES | {"RAY_worker_niceness": "0", "GENFLOW_SERVE_MOST": str(MAX_PER_REPLICA * replicas)}
    with contextlib.ExitStack() as stack:
        # A Ray that this job starts is on this machine only. HAProxy binds the address; Ray's proxy and the replicas
        # bind the loopback.
        if proxy := "" if is_submitted() else haproxy.available():
            os.environ |= stack.enter_context(
                haproxy.haproxy_variables(proxy, inputs["host"], MAX_PER_REPLICA * replicas)
            )
        else:  # no HAProxy writes X-Forwarded-For, so uvicorn must not read the client's address from it
            os.environ["FORWARDED_ALLOW_IPS"] = ""
        stack.enter_context(ray_cluster(num_cpus=max(environment.cores(), replicas), logs=False))
        inputs = {"gpus": _gpus(device, replicas, inputs.get("threads", 1)), **inputs}
        start_serve(inputs, "127.0.0.1" if proxy else inputs["host"])
        try:
            deploy(inputs, models)
            _record(inputs, emit)
            emit("note", message=_serving_note(inputs, models))
            _watch_health(inputs, emit)
        except KeyboardInterrupt:
            emit("note", message="answering the current requests, then stopping")
        finally:
            shut_down(inputs)
    return _result(inputs, models, "ended")


def _gpus(device: str, replicas: int, cpus: float) -> float:
    """The GPUs of each replica: one if there is one for each."""
    from jobs.runtime.gpus import requested

    if device.partition(":")[0] not in ("auto", "cuda"):
        return 0
    return requested(Cluster(workers=replicas, cpus=cpus))


def _record(inputs: Json, emit: Emit) -> None:
    """Record the endpoint in the store. Serving itself writes nothing, so a read-only store can be served."""
    try:
        endpoints.write(Store(), inputs)
    except OSError as error:
        missing = "genflow endpoints does not list this endpoint, and its models cannot be replaced while it runs"
        emit("warning", message=f"cannot write {Store().root}: {error.strerror}; {missing}", hint="")


def start_serve(inputs: Json, host: str) -> None:
    """Start Serve's controller and its proxy on one address.

    Raises:
        ClusterError: the cluster already serves another application; its running proxy keeps its address.
        SetupError: Serve does not start.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    if others := sorted(set(serve.status().applications) - {inputs["name"]}):
        raise ClusterError(
            f"this cluster already serves {', '.join(others)}, and has only one address",
            f"genflow endpoints down {others[0]}, or serve several models in one endpoint: "
            f"genflow serve RUN RUN --name {others[0]}",
        )
    serve.shutdown()  # remove what a crashed endpoint left
    try:
        where = HTTPOptions(host=host, port=inputs["port"], location=ProxyLocation.HeadOnly)
        serve.start(http_options=where)
    except (RuntimeError, OSError) as error:
        hint = "choose another --port; 0 selects a free one"
        raise SetupError(f"Ray Serve does not start: {str(error).splitlines()[0]}", hint) from error


def deploy(inputs: Json, models: list[ServedModel]) -> None:
    """Deploy these models, and wait until the application answers with them."""
    import logging

    from ray import serve

    from jobs.runtime.serve.deployment import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    document = {key: value for key, value in inputs.items() if key not in ("running", "host", "port")}
    document["models"] = to_documents(models)
    try:
        serve.run(application(document), name=inputs["name"], route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise GenflowError(f"the application does not start: {str(error).splitlines()[0]}", "genflow doctor") from error
    expected = list_version(models)
    end = time.monotonic() + READY_S
    version = ""
    while time.monotonic() < end:
        status, answer = get_json(f"{endpoints.address(inputs)}/healthz")
        version = answer.get("version", "") if status == 200 else ""
        if version == expected:
            return
        time.sleep(0.1)
    raise DataError(f"the application still answers with version {version or 'none'} instead of {expected}",
                    "the old models stay")  # fmt: skip


def change_models(inputs: Json, models: list[ServedModel], emit: Emit) -> Served:
    """Change the models of a running application, without a restart or a lost request."""
    running = inputs["running"]
    environment.configure_local_ray(int(running["gcs"].rpartition(":")[2]))
    import logging

    import ray

    inputs = {**running["inputs"], "models": inputs["models"], "name": inputs["name"]}
    ray.init(address=running["gcs"], logging_level=logging.ERROR, log_to_driver=False)
    try:
        deploy(inputs, models)
    except GenflowError:  # restore the configuration, so that a replica that starts later loads the old models
        deploy(inputs, [ServedModel(**entry) for entry in running["inputs"]["models"]])
        raise
    else:
        endpoints.write(Store(), inputs, running)
        emit("note", message=_serving_note(inputs, models))
    finally:
        ray.shutdown()
    return _result(inputs, models, "changed")


def shut_down(inputs: Json) -> None:
    """Answer the current requests, then remove the application. Stop Serve with the last one, which frees the port."""
    from ray import serve

    endpoints.remove(Store(), inputs["name"])
    # `serve.shutdown` kills HAProxy at once, with the requests that it carries, so the replicas end first.
    serve.delete(inputs["name"], _blocking=False)  # blocking, it waits for no longer than a request may take
    end = time.monotonic() + DRAIN_S
    while inputs["name"] in (running := serve.status().applications) and time.monotonic() < end:
        time.sleep(0.1)
    if not set(running) - {inputs["name"]}:
        serve.shutdown()


def metrics_url() -> str:
    """Return the URL where Prometheus can read the metrics of Ray and genflow."""
    import ray

    node = next(node for node in ray.nodes() if node["Alive"])
    return f"http://{http.netloc(node['NodeManagerAddress'], node['MetricsExportPort'])}/metrics"


def get_json(url: str) -> tuple[int, Json]:
    """GET a JSON document: return its status and content; status 0 without an answer."""
    try:
        answer = http.request(url, timeout=5)
        return answer.status, answer.json() if answer.ok else {}
    except (http.RequestFailed, ValueError):
        return 0, {}


def _watch_health(inputs: Json, emit: Emit) -> None:
    """Wait for a signal; report when the application stops answering, and when it answers again."""
    healthy, failures = True, 0
    while True:
        time.sleep(2)
        status, _ = get_json(f"{endpoints.address(inputs)}/healthz")
        failures = 0 if status == 200 else failures + 1
        if healthy and failures >= 3:
            healthy = False
            emit("warning", message="no replica answers; Serve is starting another", hint="")
        elif not healthy and not failures:
            healthy = True
            emit("note", message="the application answers again")


def _serving_note(inputs: Json, models: list[ServedModel]) -> str:
    names = ", ".join(model.name for model in models)
    where = endpoints.address(inputs)
    return f"serving  {names}\n         playground {where}/ · API {where}/docs · metrics {metrics_url()}"


def _result(inputs: Json, models: list[ServedModel], state: str) -> Served:
    return {
        "schema": "genflow.serve/1", "name": inputs["name"], "address": endpoints.address(inputs), "state": state,
        "models": [{"name": model.name, "run": model.run} for model in models],
        "version": list_version(models),
    }  # fmt: skip


if __name__ == "__main__":
    execute(main)
