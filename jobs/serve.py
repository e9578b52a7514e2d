"""Serve models on Ray Serve until somebody says stop; or change the models of an application that runs.

python -m jobs.serve recipe.yaml
"""

import contextlib
import os
import time

from genflow.errors import ClusterError, DataError, GenflowError, SetupError
from genflow.serving import endpoints
from genflow.serving.engine_cache import check_models
from genflow.serving.model_list import ServedModel, list_version, to_documents
from genflow.storage.store import Store
from genflow.system import environment, http
from jobs.runtime.cluster import is_submitted, ray_cluster
from jobs.runtime.entrypoint import Document, Emit, execute
from jobs.runtime.serve import haproxy
from jobs.runtime.serve.retry_middleware import MAX_PER_REPLICA

READY_S = 120.0
SERVE_VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.runtime.serve.retry_middleware:middlewares",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # else one that hangs is given its minute to end well
}


def main(document: Document, emit: Emit) -> Document:
    """Deploy `inputs.models` as the application `inputs.name`.

    Every model is loaded and drawn from here first, so that what does not work never takes the place of what does.

    Returns:
        A `genflow.serve/1` document, when the endpoint has ended, or has changed.

    Raises:
        DataError: a model does not work.
        SetupError: Serve does not start.
    """
    inputs = document["inputs"]
    models = [ServedModel(**entry) for entry in inputs["models"]]
    check_models(models)
    if inputs.get("running"):
        return change_models(inputs, models, emit)
    # before Ray starts: its daemons inherit it; and somebody waits for these, with Ray's own 15 a training goes first
    replicas = max(inputs.get("replicas", 1), inputs.get("most_replicas", 0))
    os.environ |= SERVE_VARIABLES | {"RAY_worker_niceness": "0", "GENFLOW_SERVE_MOST": str(MAX_PER_REPLICA * replicas)}
    with contextlib.ExitStack() as stack:
        # a Ray of our own is this machine alone: HAProxy has the address, and what is behind it the loopback
        if proxy := "" if is_submitted() else haproxy.available():
            os.environ |= stack.enter_context(
                haproxy.haproxy_variables(proxy, inputs["host"], MAX_PER_REPLICA * replicas)
            )
        stack.enter_context(ray_cluster(num_cpus=max(environment.cores(), replicas), logs=False))
        start_serve(inputs, "127.0.0.1" if proxy else inputs["host"])
        try:
            deploy(inputs, models)
            store = Store()
            endpoints.write(store, inputs)
            emit("note", message=_serving_note(inputs, models))
            _watch_health(inputs, emit)
        except KeyboardInterrupt:
            emit("note", message="answering what is under way, then ending")
        finally:
            shut_down(inputs)
    return _result(inputs, models, "ended")


def start_serve(inputs: Document, host: str) -> None:
    """Start Serve's controller and its proxy, on one address and no other.

    Raises:
        ClusterError: the cluster serves something else: it has one address, and a proxy that runs keeps its own.
        SetupError: Serve does not start.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    if others := sorted(set(serve.status().applications) - {inputs["name"]}):
        raise ClusterError(
            f"this cluster serves {', '.join(others)} already, and has one address for all",
            f"genflow endpoints down {others[0]}; or several models in one: genflow serve RUN RUN --name {others[0]}",
        )
    serve.shutdown()  # what an endpoint that did not come to its end has left
    try:
        where = HTTPOptions(host=host, port=inputs["port"], location=ProxyLocation.HeadOnly)
        serve.start(http_options=where)
    except (RuntimeError, OSError) as error:
        hint = "choose another --port; 0 takes a free one"
        raise SetupError(f"Ray Serve does not start: {str(error).splitlines()[0]}", hint) from error


def deploy(inputs: Document, models: list[ServedModel]) -> None:
    """Bring the application to these models, and wait until every request is answered by them."""
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
        status, answer = get_json(f"{endpoint_url(inputs)}/healthz")
        version = answer.get("version", "") if status == 200 else ""
        if version == expected:
            return
        time.sleep(0.1)
    raise DataError(f"the application answers with version {version or 'none'} instead of {expected}",
                    "the old models stay")  # fmt: skip


def change_models(inputs: Document, models: list[ServedModel], emit: Emit) -> Document:
    """Give an application that runs other models; nothing restarts, and no request is lost."""
    running = inputs["running"]
    environment.loopback(int(running["gcs"].rpartition(":")[2]))
    import logging

    import ray

    inputs = {**running["inputs"], "models": inputs["models"], "name": inputs["name"]}
    ray.init(address=running["gcs"], logging_level=logging.ERROR, log_to_driver=False)
    try:
        deploy(inputs, models)
    except GenflowError:  # else a replica that starts later would meet what could not be served
        deploy(inputs, [ServedModel(**entry) for entry in running["inputs"]["models"]])
        raise
    else:
        endpoints.write(Store(), inputs, running)
        emit("note", message=_serving_note(inputs, models))
    finally:
        ray.shutdown()
    return _result(inputs, models, "changed")


def shut_down(inputs: Document) -> None:
    """Drain: what is under way is answered, then the application goes, and Serve and its port with the last one."""
    from ray import serve

    endpoints.remove(Store(), inputs["name"])
    if set(serve.status().applications) - {inputs["name"]}:
        serve.delete(inputs["name"])
    else:
        serve.shutdown()


def endpoint_url(inputs: Document) -> str:
    """Where the application is reached from this machine."""
    host = "127.0.0.1" if inputs["host"] in ("0.0.0.0", "::") else inputs["host"]
    return f"http://{host}:{inputs['port']}"


def metrics_url() -> str:
    """Where Prometheus finds Ray's metrics and ours."""
    import ray

    node = next(node for node in ray.nodes() if node["Alive"])
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def get_json(url: str) -> tuple[int, Document]:
    """GET a JSON document: the status and the document; 0 where nobody answers."""
    try:
        answer = http.request(url, timeout=5)
        return answer.status, answer.json() if answer.ok else {}
    except (http.RequestFailed, ValueError):
        return 0, {}


def _watch_health(inputs: Document, emit: Emit) -> None:
    """Until a signal; says when the application stops answering, and when it does again."""
    healthy, failures = True, 0
    while True:
        time.sleep(2)
        status, _ = get_json(f"{endpoint_url(inputs)}/healthz")
        failures = 0 if status == 200 else failures + 1
        if healthy and failures >= 3:
            healthy = False
            emit("warning", message="no replica answers; Serve is starting another", hint="")
        elif not healthy and not failures:
            healthy = True
            emit("note", message="it answers again")


def _serving_note(inputs: Document, models: list[ServedModel]) -> str:
    names = ", ".join(model.name for model in models)
    where = endpoint_url(inputs)
    return f"serving  {names}\n         playground {where}/ · API {where}/docs · metrics {metrics_url()}"


def _result(inputs: Document, models: list[ServedModel], state: str) -> Document:
    return {
        "schema": "genflow.serve/1", "name": inputs["name"], "address": endpoint_url(inputs), "state": state,
        "models": [{"name": model.name, "run": model.run} for model in models],
        "version": list_version(models),
    }  # fmt: skip


if __name__ == "__main__":
    execute(main)
