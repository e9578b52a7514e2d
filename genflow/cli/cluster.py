"""`genflow cluster`: check a cluster file, then call Ray's cluster launcher."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.options import Address, AsJson, Yes
from genflow.errors import ClusterError, SetupError, UsageError
from genflow.system.documents import Json

app = typer.Typer(help="Start, inspect and stop the machines of a Ray cluster.", no_args_is_help=True)
ClusterFile = Annotated[str, typer.Argument(metavar="[FILE]", help="Cluster file; default: cluster.yaml.")]

TUNNEL_S = 60.0  # timeout for opening an ssh tunnel


@app.command()
def validate(file: ClusterFile = "", json: AsJson = False) -> None:
    """Check a cluster file or a KubeRay manifest without contacting any machine."""
    from genflow.launch import cluster_config

    path = _path(file)
    document = cluster_config.read(path)
    found = cluster_config.problems(document, Path.cwd())
    if json:
        console.document({"schema": "genflow.cluster.validate/1", "file": str(path), "problems": found})
    else:
        print("\n".join(f"✘ {path}: {problem}" for problem in found) or f"✔ {path}: {_summary(document)}")
    if found:
        raise UsageError(f"{path} has {len(found)} problem{'s' * (len(found) > 1)}", "fix the problems listed above")


@app.command()
def up(file: ClusterFile = "", yes: Yes = False) -> None:
    """Start a cluster with Ray's launcher and token authentication."""
    from genflow.launch import cluster_config
    from genflow.launch.ray_dashboard import PORT
    from genflow.system import environment

    path, document = _read_launcher_file(file)
    if not os.environ.get("RAY_AUTH_TOKEN"):
        environment.ensure_token()
    if found := cluster_config.problems(document, Path.cwd()):
        raise UsageError(f"{path}: {found[0]}", f"genflow cluster validate {path}")
    console.confirm(f"start {_summary(document)}? [y/N] ", f"this would start {_summary(document)}", yes)
    _run_launcher(document, "up", str(path), "-y", "--no-config-cache", "--disable-usage-stats")
    console.next_commands(f"genflow cluster dashboard {path}", f"genflow doctor --cluster --address 127.0.0.1:{PORT}")


@app.command()
def status(file: ClusterFile = "", address: Address = "", json: AsJson = False) -> None:
    """Show a cluster's nodes, their resources, and its Ray and Python versions."""
    from genflow.launch.ray_dashboard import Dashboard
    from genflow.system import ports

    named = address or ("" if file else os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"))
    tunnel = None if named else _tunnel(*_read_launcher_file(file), ports.free_port())
    with tunnel or contextlib.nullcontext(named) as where:
        dashboard = Dashboard.at(where)
        facts = {"address": dashboard.address, "authentication": dashboard.mode(), "ray": dashboard.ray_version()}
        facts, nodes = facts | {"python": dashboard.python_version()}, dashboard.nodes()
    if json:
        console.document({"schema": "genflow.cluster.status/1", **facts, "nodes": nodes})
        return
    print(f"cluster  Ray {facts['ray']} · Python {facts['python']} · authentication {facts['authentication']}")
    kind = ["head" if node["head"] else node["group"] or "worker" for node in nodes]
    rows = [(n["name"], n["address"], k, *_resources(n["resources"])) for n, k in zip(nodes, kind, strict=True)]
    print(console.table(("node", "address", "group", "CPU", "GPU", "memory"), rows, left=3))


@app.command()
def dashboard(
    file: ClusterFile = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port; 0: any free port.")] = 8265,
) -> None:
    """Open an ssh tunnel to a cluster's dashboard until Ctrl-C."""
    from genflow.system import ports

    path, document = _read_launcher_file(file)
    port = port or ports.free_port()
    if not ports.is_free(port):
        raise SetupError(f"port {port} on 127.0.0.1 is already in use", "genflow cluster dashboard --port 0")
    with _tunnel(path, document, port) as address:
        print(f"dashboard  {address}   (press Ctrl-C to close the tunnel)", flush=True)
        print(f"           for commands with --cluster: export RAY_API_SERVER_ADDRESS={address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


@app.command()
def down(file: ClusterFile = "", yes: Yes = False) -> None:
    """Stop a cluster; cloud machines and their disks are deleted."""
    from genflow.launch import cluster_config

    path, document = _read_launcher_file(file)
    name = document["cluster_name"]
    local = cluster_config.is_local(document)
    effect = f"stop Ray on the machines of {name}" if local else f"delete the machines of {name} and their disks"
    console.confirm(f"{effect}? [y/N] ", f"this would {effect}", yes)
    _run_launcher(document, "down", str(path), "-y")
    print(f"stopped  {name}")


def _path(reference: str) -> Path:
    """FILE; otherwise cluster.yaml in the current folder; otherwise the cluster.yaml that genflow ships."""
    from genflow.system.source_hash import resources_dir

    if reference:
        return Path(reference).expanduser()
    here = Path("cluster.yaml")
    return here if here.exists() else resources_dir() / here


def _read_launcher_file(reference: str) -> tuple[Path, Json]:
    """A cluster file for Ray's launcher, and its path.

    Raises:
        UsageError: the file is unreadable, or is a Kubernetes manifest.
    """
    from genflow.launch import cluster_config

    path = _path(reference)
    document = cluster_config.read(path)
    if cluster_config.is_manifest(document):
        raise UsageError(
            f"{path} is a Kubernetes manifest, which Ray's launcher cannot use", f"kubectl apply -f {path}"
        )
    return path, document


def _summary(document: Json) -> str:
    """A one-line summary of a cluster file."""
    from genflow.launch import cluster_config

    if cluster_config.is_manifest(document):
        return f"{document['kind']} {document['metadata']['name']}"
    provider = document["provider"]
    if cluster_config.is_local(document):
        workers = ", ".join(map(str, provider.get("worker_ips", [])))
        return f"{document['cluster_name']} on {provider.get('head_ip')}, with workers {workers}"
    kinds = [f"{name} up to {kind.get('max_workers', '?')}" for name, kind in document["available_node_types"].items()
             if name != document["head_node_type"]]  # fmt: skip
    where = provider.get("region", "?")
    return f"{document['cluster_name']} on {provider['type']} in {where}, with workers {', '.join(kinds)}"


def _resources(have: Json) -> tuple[str, str, str]:
    return f"{have.get('CPU', 0):g}", f"{have.get('GPU', 0):g}", f"{have.get('memory', 0) / 2**30:.1f} GiB"


def _launcher(document: Json) -> tuple[list[str], dict[str, str]]:
    """The command that runs Ray's launcher, and its environment variables."""
    from genflow.launch import cluster_config

    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    if cluster_config.is_local(document):  # autoscaler v2 of Ray 2.60 never contacts the workers
        variables.setdefault("RAY_UP_enable_autoscaler_v2", "0")
    return [sys.executable, "-m", "ray.scripts.scripts"], variables


def _run_launcher(document: Json, *arguments: str) -> None:
    command, variables = _launcher(document)
    code = subprocess.run([*command, *arguments], env=variables, stdout=sys.stderr.fileno(), check=False).returncode
    if code:
        raise ClusterError(f"`ray {arguments[0]}` failed with exit code {code}", "see its output above")


@contextlib.contextmanager
def _tunnel(path: Path, document: Json, port: int) -> Iterator[str]:
    """Open an ssh tunnel from a loopback port of this machine to the head's dashboard; yield its address.

    Raises:
        ClusterError: the tunnel is not open within TUNNEL_S seconds, or the launcher exits.
    """
    from genflow.system import ports

    command, variables = _launcher(document)
    process = subprocess.Popen(
        [*command, "dashboard", str(path), "--port", str(port), "--no-config-cache"], env=variables, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + TUNNEL_S
        while ports.is_free(port):
            if process.poll() is not None or time.monotonic() > deadline:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                output = [line.strip() for line in process.communicate()[0].splitlines() if line.strip()]
                why = output[-1] if output else f"no answer within {TUNNEL_S:g} s"
                raise ClusterError(
                    f"cannot open a tunnel to the head of {path}: {why}",
                    f"start the cluster if it is not running: genflow cluster up {path}",
                )
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
