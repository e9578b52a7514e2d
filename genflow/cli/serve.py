"""`genflow serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import Document, find_run, send
from genflow.cli.options import Address, AsJson, OnCluster, complete_run
from genflow.errors import SetupError, UsageError

SHORTEST_KEY = 24  # characters


def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Models.", autocompletion=complete_run)],
    name: Annotated[str, typer.Option(help="What to call the endpoint; by default as its first model.")] = "",
    host: Annotated[str, typer.Option(help="Where to listen; any but the loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Processes that draw.")] = 1,
    most: Annotated[int, typer.Option("--max-replicas", min=0, help="Grow to so many under load.")] = 0,
    memory: Annotated[int, typer.Option(min=1, help="MB of models that a replica keeps loaded.")] = 2048,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make an API key, show it once, and ask for it.")] = False,
    config_out: Annotated[Path | None, typer.Option(help="Write serve.yaml for `serve deploy`, and stop.")] = None,
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Serve models on Ray Serve, with a playground, until Ctrl-C. Of a name that is served: change its models."""
    from genflow.serving import endpoints
    from genflow.serving.model_list import served_models, to_documents
    from genflow.storage.store import Store
    from genflow.system import environment

    store = Store()
    found = [find_run(store, reference) for reference in runs]
    if name and not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"--name {name}: letters, digits, - and _ alone")
    models = served_models(store, found, [name] if name and len(found) == 1 else [])
    endpoint = name or models[0].name
    running = endpoints.get(store, endpoint)
    keys = [] if running else _keys(host, new_key)
    inputs: Document = {
        "name": endpoint, "models": to_documents(models), "host": host, "port": port or environment.free_port(),
        "replicas": replicas, "most_replicas": most, "memory_mb": memory, "keys": keys,
        "threads": max(1, (environment.cores() - 1) // max(replicas, most)), "per_minute": 600 if keys else 0,
    }  # fmt: skip
    if config_out:
        _write_configuration(config_out, inputs)
        return
    if running is None and not cluster and not environment.is_free(inputs["port"], host):
        raise SetupError(f"port {port} of {host} is taken", "genflow serve RUN --port 0 takes a free one")
    if running:
        console.note(f"{endpoint} is being served: giving it {', '.join(model.name for model in models)}")
        inputs["running"] = running
    done = send("serve", {"inputs": inputs}, store, cluster, address, json=json)
    if json:
        console.document(done)
    else:
        print(f"endpoint {done['name']}  {done['address']}  {done['state']}")


def _write_configuration(out: Path, inputs: Document) -> None:
    from genflow.recipe.files import dump
    from genflow.storage.files import write_atomically

    write_atomically(out, dump(configuration(inputs)))
    print(f"wrote    {out}\n")
    print("It names runs by folders that every node must see, and code by `jobs.runtime.serve.deployment:build`.")
    console.next_commands(f"serve deploy {out}")


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
        console.note(f"key      {given}\n         it is shown this once; what is kept is its hash")
        return [hash]
    if not given and not _is_loopback(host):
        raise UsageError(
            f"--host {host} is seen by other machines, and nobody would be asked for a key",
            "add --new-key, or set GENFLOW_API_KEY",
        )
    return [middleware.hash_key(given)] if given else []


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        if host == "localhost":
            return True
        raise UsageError(f"--host {host} is no address", "127.0.0.1, or an address of this machine") from None
