"""`genflow serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import send
from genflow.cli.options import Address, AsJson, Device, OnCluster, complete_run
from genflow.commands.references import find_run
from genflow.errors import GenflowError, SetupError, UsageError
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Artifact

MIN_KEY_LENGTH = 24  # characters


def serve(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs to serve as models.", autocompletion=complete_run)
    ],
    name: Annotated[str, typer.Option(help="Name of the endpoint; default: the first model's name.")] = "",
    host: Annotated[
        str, typer.Option(help="Address to listen on; an API key is needed unless it is a loopback address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Number of replicas.")] = 1,
    most: Annotated[int, typer.Option("--max-replicas", min=0, help="Add replicas under load, up to this number.")] = 0,
    memory: Annotated[int, typer.Option(min=1, help="Memory for loaded models in each replica, in MB.")] = 2048,
    device: Device = "auto",
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Create an API key, print it once, and require it.")
    ] = False,
    config_out: Annotated[
        Path | None, typer.Option(help="Write a config file for Ray's `serve deploy` and exit.")
    ] = None,
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Serve models over HTTP with a playground page, until Ctrl-C.

    If an endpoint with this name is running, the command replaces its models instead.
    """
    from genflow.sampling.autoencoders import require_sampler
    from genflow.serving import endpoints
    from genflow.serving.model_list import served_models, to_documents
    from genflow.storage.store import Store
    from genflow.system import devices, environment, ports

    devices.check(device)
    store = Store()
    found = [find_run(store, reference) for reference in runs]
    for run in found:
        require_sampler(run)
        _note_missing_encoder(run)
    if name and not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"--name {name!r}: only letters, digits, - and _ are allowed", "choose another --name")
    models = served_models(store, found, [name] if name and len(found) == 1 else [])
    endpoint = name or models[0].name
    running = endpoints.get(store, endpoint)
    keys = [] if running else _keys(host, new_key)
    inputs: Json = {
        "name": endpoint, "models": to_documents(models), "host": host, "port": port or ports.free_port(),
        "replicas": replicas, "most_replicas": most, "memory_mb": memory, "keys": keys, "device": device,
        "threads": max(1, (environment.cores() - 1) // max(replicas, most)), "per_minute": 600 if keys else 0,
        "hosts": os.environ.get("GENFLOW_ALLOWED_HOSTS", "").lower().replace(",", " ").split(),
    }  # fmt: skip
    if config_out:
        _write_configuration(config_out, inputs)
        return
    if running is None and not cluster and not ports.is_free(inputs["port"], host):
        raise SetupError(
            f"port {port} on {host} is already in use", "choose another --port; --port 0 finds a free port"
        )
    if running:
        console.note(f"endpoint {endpoint} is running; its models become {', '.join(model.name for model in models)}")
        inputs["running"] = running
    done = send("serve", {"inputs": inputs}, store, cluster, address, json=json)
    if json:
        console.document(done)
    else:
        print(f"endpoint {done['name']}  {done['address']}  {done['state']}")


def _note_missing_encoder(run: "Artifact") -> None:
    """Say that this machine cannot read new prompts for a run of captions; those that the run has stored are drawn."""
    if not run.meta.get("texts"):
        return
    from genflow import text_encoders
    from genflow.data.texts import INDEX, Texts
    from genflow.sampling.engine import TEXT

    try:
        text_encoders.find(Texts.open(run.file(f"{TEXT}/{INDEX}").parent).encoder)
    except GenflowError as error:
        console.note(f"warning: {run.name} draws only the captions that it has stored: {error.message}")
        console.note(f"         fix: {error.hint}")


def _write_configuration(out: Path, inputs: Json) -> None:
    from genflow.recipe.files import dump
    from genflow.storage.files import write_atomically

    write_atomically(out, dump(configuration(inputs)))
    print(f"wrote    {out}\n")
    print("Every node needs access to the run folders in this file and must be able to import `jobs` and `genflow`.")
    console.next_commands(f"serve deploy {out}")


def configuration(inputs: Json) -> Json:
    """The application as a Ray Serve config, for `serve deploy` and KubeRay's RayService."""
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
    """Hashes of the accepted API keys: of GENFLOW_API_KEY, or of a new key, which is printed once.

    Raises:
        UsageError: GENFLOW_API_KEY is too short, or the address is public and there is no key.
    """
    from genflow.serving import middleware

    given = os.environ.get("GENFLOW_API_KEY", "")
    if given and len(given) < MIN_KEY_LENGTH:
        raise UsageError(f"GENFLOW_API_KEY has fewer than {MIN_KEY_LENGTH} characters", "genflow serve RUN --new-key")
    if new_key:
        given, hash = middleware.new_key()
        console.note(f"key      {given}\n         copy it now: it is not shown again, and only its hash is stored")
        return [hash]
    if not given and not _is_loopback(host):
        raise UsageError(
            f"--host {host} is reachable from other machines, and no API key is set",
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
        raise UsageError(f"--host {host} is not an IP address", "use 127.0.0.1 or an address of this machine") from None
