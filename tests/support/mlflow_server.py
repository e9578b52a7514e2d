"""An HTTP server with the part of MLflow's interface that a journal without files needs. It can fail at any request."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/api/2.0/mlflow/"


class MlflowServer:
    """A running server.

    Attributes:
        url: its address.
        asked: the paths of all requests, in order, also of those that it did not answer.
        rows: the metrics as MLflow stores them: one for each run, key, time, step and value.
        runs: the runs by id.
        fails: decides by the number of a request whether it gets no answer: "before" or "after" it has taken effect.
        on_request: called at each request.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.rows: set[tuple[Any, ...]] = set()
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.tags: dict[str, dict[str, str]] = {}  # of the experiments, by id
        self.fails: Callable[[int], str] = lambda number: ""
        self.on_request: Callable[[], None] = lambda: None
        self.lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mlflow": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Carry out a request; return the status and the document of the answer."""
        if path == "experiments/get-by-name":
            id = self.experiments.get(body["experiment_name"])
            tags = [{"key": key, "value": value} for key, value in self.tags.get(str(id), {}).items()]
            return self._found("experiment", id and {"experiment_id": id, "lifecycle_stage": "active", "tags": tags})
        if path == "experiments/create":
            id = self.experiments[body["name"]] = str(len(self.experiments) + 1)
            self.tags[id] = {}
            return 200, {"experiment_id": id}
        if path == "experiments/set-experiment-tag":
            self.tags[body["experiment_id"]][body["key"]] = body["value"]
            return 200, {}
        if path == "runs/search":
            wanted = body["filter"].split("'")[1]
            return 200, {"runs": [run for run in self.runs.values() if wanted in str(run["data"]["tags"])]}
        if path == "runs/create":
            id = f"run{len(self.runs)}"
            self.runs[id] = {"info": {"run_id": id, "status": "RUNNING"}, "data": {"tags": body["tags"]}}
            return 200, {"run": self.runs[id]}
        if path == "runs/get":
            return self._found("run", self.runs.get(body["run_id"]))
        if path == "runs/log-batch":
            for metric in body.get("metrics", []):
                self.rows.add((body["run_id"], *(str(metric[name]) for name in ("key", "timestamp", "step", "value"))))
            return 200, {}
        if path == "runs/update":
            self.runs[body["run_id"]]["info"]["status"] = body["status"]
            return 200, {"run_info": self.runs[body["run_id"]]["info"]}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}

    @staticmethod
    def _found(name: str, value: Any) -> tuple[int, dict[str, Any]]:
        return (200, {name: value}) if value else (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": name})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for an answer: else TCP delays it by 40 ms
    mlflow: MlflowServer

    def do_GET(self) -> None:
        """Answer a request whose arguments are in the address."""
        self._reply({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self) -> None:
        """Answer a request whose arguments are in the body."""
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def _reply(self, body: dict[str, Any]) -> None:
        mlflow, path = self.mlflow, urlsplit(self.path).path.removeprefix(API)
        with mlflow.lock:
            mlflow.on_request()
            mlflow.asked.append(path)
            failure = mlflow.fails(len(mlflow.asked))
            status, document = (0, {}) if failure == "before" else mlflow.answer(path, body)
        if failure:
            self.close_connection = True
            return
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
