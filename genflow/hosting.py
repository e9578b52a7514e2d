"""What `genflow serve` and `genflow endpoints` do."""

import ipaddress
import os
import signal
import time
from pathlib import Path
from typing import Any

from genflow import terminal
from genflow.commands import Where, find_run, send
from genflow.errors import SetupError, UsageError
from genflow.recipe.files import dump
from genflow.serving import endpoints
from genflow.serving.model_list import as_documents, entries
from genflow.storage.files import HOSTNAME, write_atomically
from genflow.storage.store import Store
from genflow.system import environment

Document = dict[str, Any]

SHORTEST_KEY = 24  # characters


def serve(
    references: list[str], name: str, host: str, port: int, replicas: tuple[int, int], memory_mb: int, new_key: bool,
    out: Path | None, where: Where, *, json: bool,
) -> None:  # fmt: skip
    """`genflow serve`: the models, the address and the key are settled here; `jobs/serve.py` does the rest."""
    store = Store()
    runs = [find_run(store, reference) for reference in references]
    if name and not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"--name {name}: letters, digits, - and _ alone")
    models = entries(store, runs, [name] if name and len(runs) == 1 else [])
    endpoint = name or models[0].name
    running = endpoints.get(store, endpoint)
    keys = [] if running else _keys(host, new_key)
    inputs: Document = {
        "name": endpoint, "models": as_documents(models), "host": host, "port": port or environment.free_port(),
        "replicas": replicas[0], "most_replicas": replicas[1], "memory_mb": memory_mb, "keys": keys,
        "threads": max(1, (environment.cores() - 1) // max(replicas)), "per_minute": 600 if keys else 0,
    }  # fmt: skip
    if out:
        write_atomically(out, dump(configuration(inputs)))
        print(f"wrote    {out}\n")
        print("It names runs by folders that every node must see, and code by `jobs.runtime.serve.deployment:build`.")
        terminal.next_commands(f"serve deploy {out}")
        return
    if running is None and not where.cluster and not environment.is_free(inputs["port"], host):
        raise SetupError(f"port {port} of {host} is taken", "genflow serve RUN --port 0 takes a free one")
    if running:
        terminal.note(f"{endpoint} is being served: giving it {', '.join(model.name for model in models)}")
        inputs["running"] = running
    done = send("serve", {"inputs": inputs}, store, where, json=json)
    if json:
        terminal.document(done)
    else:
        print(f"endpoint {done['name']}  {done['address']}  {done['state']}")


def configuration(inputs: Document) -> Document:
    """The application as Ray Serve's own configuration, for `serve deploy` and KubeRay's RayService."""
    arguments = {key: value for key, value in inputs.items() if key not in ("host", "port")}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": inputs["host"], "port": inputs["port"]},
        "applications": [
            {
                "name": inputs["name"],
                "route_prefix": "/",
                "import_path": "jobs.runtime.serve.deployment:build",
                "args": arguments,
            }
        ],
    }


def _keys(host: str, new_key: bool) -> list[str]:
    """The hashes of the keys that are let in: of GENFLOW_API_KEY, or of a new one, which is shown once."""
    from genflow.serving import middleware

    given = os.environ.get("GENFLOW_API_KEY", "")
    if given and len(given) < SHORTEST_KEY:
        raise UsageError(f"GENFLOW_API_KEY is shorter than {SHORTEST_KEY} characters", "genflow serve RUN --new-key")
    if new_key:
        given, hash = middleware.new_key()
        terminal.note(f"key      {given}\n         it is shown this once; what is kept is its hash")
        return [hash]
    if not given and not _is_loopback(host):
        raise UsageError(
            f"--host {host} is seen by other machines, and nobody would be asked for a key",
            "add --new-key, or set GENFLOW_API_KEY",
        )
    return [middleware.hashed(given)] if given else []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        if host == "localhost":
            return True
        raise UsageError(f"--host {host} is no address", "127.0.0.1, or an address of this machine") from None


def promote(reference: str, name: str, alias: str, *, json: bool) -> None:
    """`genflow promote`."""
    from genflow.tracking import model_registry

    store = Store()
    run = find_run(store, reference)
    promoted = model_registry.promote(store, run, name, alias)
    if json:
        terminal.document({"schema": "genflow.promote/1", "run": run.id, "model": promoted})
        return
    print(f"promoted {run.id}  {promoted}")
    terminal.next_commands(f"genflow serve {promoted}{f' --name {name}' if name else ''}")


def list_endpoints(*, json: bool) -> None:
    """`genflow endpoints ls`."""
    rows = []
    for endpoint in endpoints.alive(Store()):
        inputs = endpoint["inputs"]
        address = f"http://{inputs['host']}:{inputs['port']}"
        status = "well" if endpoints.is_well(address) else "does not answer"
        models = [model["name"] for model in inputs["models"]]
        rows.append({"name": endpoint["name"], "address": address, "models": models, "status": status})
    if json:
        terminal.document({"schema": "genflow.endpoints/1", "endpoints": rows})
        return
    if not rows:
        print("nothing is being served")
        terminal.next_commands("genflow serve RUN")
        return
    table = [(row["name"], row["address"], ", ".join(row["models"]), row["status"]) for row in rows]
    print(terminal.table(("endpoint", "address", "models", "status"), table, left=4))


def take_down(name: str) -> None:
    """`genflow endpoints down`: what is under way is answered first."""
    store = Store()
    found = endpoints.get(store, name)
    if found is None:
        known = ", ".join(endpoint["name"] for endpoint in endpoints.alive(store)) or "none"
        raise UsageError(f"no endpoint {name!r} is being served; there are: {known}", "genflow endpoints ls")
    if found["node"] != HOSTNAME:
        raise UsageError(f"{name} is served by {found['node']}", "genflow jobs ls, then genflow jobs stop JOB")
    os.kill(found["pid"], signal.SIGTERM)
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if endpoints.get(store, name) is None and not endpoints.lives(found):
            print(f"ended    {name}")
            return
        time.sleep(0.2)
    raise SetupError(f"{name} is still answering requests", f"wait, or kill process {found['pid']}")
