"""Check a cluster file before any machine is started; each problem is one line.

Files for Ray's launcher (`cluster.yaml`) are validated against the schema that Ray ships. Kubernetes manifests
(RayCluster, RayJob, RayService) are checked for settings that KubeRay rejects or that leave a cluster unprotected.
"""

import importlib.metadata
import importlib.util
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from genflow.errors import UsageError
from genflow.system import environment
from genflow.system.documents import Json

TOKEN = "RAY_AUTH_MODE=token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
RAY_PORTS = (6379, 8265, 10001)  # must not be reachable from other networks
ANY_ADDRESS = ("0.0.0.0/0", "::/0")
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
MANIFESTS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
RAY_VERSION = re.compile(r"(?:rayproject/ray(?:-ml)?:|\bray(?:\[[^\]]*\])?==|\bray)(\d+\.\d+(?:\.\d+)?)")


def read(path: Path) -> Json:
    """Read a cluster file; among several YAML documents, return the first that describes a cluster.

    Raises:
        UsageError: the file is unreadable, is not YAML, or describes no cluster.
    """
    try:
        parts = [part for part in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(part, dict)]
    except OSError as error:
        raise UsageError(
            f"cannot read the cluster file {path}: {error.strerror}",
            "give the path of a cluster file, such as cluster.yaml",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = [part for part in parts if part.get("kind") in MANIFESTS or "provider" in part or "cluster_name" in part]
    if not found:
        raise UsageError(f"{path} is not a cluster file: it has neither `provider` nor a KubeRay `kind`")
    return found[0]


def is_manifest(document: Json) -> bool:
    """Whether it is a KubeRay manifest, not a file for Ray's launcher."""
    return document.get("kind") in MANIFESTS


def is_local(document: Json) -> bool:
    """Whether it lists existing machines (`provider: {type: local}`)."""
    return bool(document.get("provider", {}).get("type") == "local")


def problems(document: Json, folder: Path) -> list[str]:
    """All problems of a cluster file.

    Args:
        document: content of the file.
        folder: base folder of its relative paths.
    """
    if is_manifest(document):
        return list(_manifest(document))
    broken = [f"{where}: {what}" for where, what in _schema(document)]
    if broken:  # the other checks need a valid structure
        return broken
    return [
        *_token(document), *_exposed_ports(document), *_versions(document, folder), *_size_limits(document),
        *_hosts(document),
    ]  # fmt: skip


def _schema(document: Json) -> Iterator[tuple[str, str]]:
    """Violations of Ray's schema."""
    import jsonschema

    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    for error in jsonschema.Draft7Validator(schema).iter_errors(document):
        yield ".".join(map(str, error.absolute_path)) or "top level", error.message


def _token(document: Json) -> Iterator[str]:
    """Token authentication on every node, with a token file that only its owner can read."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in document.get(key, []) if "ray start" in command]
        if not starts:
            yield f"{key}: no command starts Ray with {TOKEN}; without it Ray requires no token"
        elif not any(TOKEN in command for command in document[key]):
            yield f"{key}: Ray starts without {TOKEN}, so any client that reaches it can run code: add {TOKEN}"
    mounts = [Path(there).expanduser() for there in document.get("file_mounts", {}).values()]
    if environment.token_path() not in mounts:
        path = environment.token_path()
        yield f"file_mounts: Ray's token is not copied to the nodes: add '~/.ray/auth_token': '{path}'"
    elif not environment.token_path().exists():
        yield f"file_mounts: the token {environment.token_path()} does not exist: genflow doctor creates it"
    elif stat.S_IMODE(environment.token_path().stat().st_mode) & 0o077:
        path = environment.token_path()
        yield f"file_mounts: other users can read the token {path}: chmod 600 {path}"
    if not any("chmod 600" in command and "auth_token" in command for command in _commands(document)):
        yield "setup_commands: other users on the nodes can read the token: add chmod 600 ~/.ray/auth_token"
    for text in _texts(document):
        if re.search(r"RAY_AUTH_TOKEN=|--auth-token|AWS_SECRET_ACCESS_KEY=|PASSWORD=", text):
            yield "a command contains a secret, which `ps` and logs show: copy a file with file_mounts instead"
            break


def _exposed_ports(document: Json) -> Iterator[str]:
    """Ray listens only on addresses that other networks cannot reach."""
    for command in document.get("head_start_ray_commands", []):
        host = re.search(r"--dashboard-host[= ](\S+)", command)
        if host and host[1] not in LOOPBACK:
            yield (f"head_start_ray_commands: --dashboard-host={host[1]} exposes the dashboard to the network: "
                   "use 127.0.0.1, and open a tunnel with `genflow cluster dashboard`")  # fmt: skip
    for rule in (document.get("provider", {}).get("security_group") or {}).get("IpPermissions", []):
        ranges = [r.get("CidrIp") or r.get("CidrIpv6") for r in rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])]
        low, high = rule.get("FromPort", 0), rule.get("ToPort", 65535)
        open_ports = [str(port) for port in RAY_PORTS if low <= port <= high]
        if open_ports and set(ranges) & set(ANY_ADDRESS):
            yield f"provider.security_group: port {', '.join(open_ports)} is open to the internet: open only port 22"


def _versions(document: Json, folder: Path) -> Iterator[str]:
    """The cluster has the same minor release of Ray as this machine, and Python 3.11 or newer."""
    here = importlib.metadata.version("ray")
    texts = [(key, command) for key in COMMANDS for command in document.get(key, [])]
    texts += [("docker", str(image)) for key, image in (document.get("docker") or {}).items() if "image" in key]
    for local in document.get("file_mounts", {}).values():
        pinned = folder / Path(str(local)).expanduser() / "constraints.txt"
        if pinned.is_file():
            texts.append((str(pinned), "".join(re.findall(r"^ray==\S+$", pinned.read_text(encoding="utf-8"), re.M))))
    for where, text in texts:
        for there in RAY_VERSION.findall(text):
            if there.split(".")[:2] != here.split(".")[:2]:
                yield f"{where}: Ray {there} on the cluster, but Ray {here} on this machine: use the same minor release"
        for python in re.findall(r"--python[= ](\d+)\.(\d+)", text):
            if tuple(map(int, python)) < (3, 11):
                yield f"{where}: Python {'.'.join(python)}: genflow needs 3.11 or newer"


def _size_limits(document: Json) -> Iterator[str]:
    """The cluster has an upper size limit, and its head is not a spot machine."""
    kinds = document.get("available_node_types")
    if is_local(document):
        return
    if not kinds:
        yield "available_node_types: is missing, so Ray would choose the machine types"
        return
    head = document.get("head_node_type")
    if head not in kinds:
        yield f"head_node_type: {head!r} is not one of {', '.join(kinds)}"
    elif "spot" in json.dumps(kinds[head]["node_config"]).lower() or "preemptible" in json.dumps(kinds[head]):
        yield f"available_node_types.{head}: the head is a spot machine; if it is reclaimed, all jobs are lost"
    if "max_workers" not in document:
        yield "max_workers: is missing, so costs are not limited"
    for name, kind in kinds.items():
        if name != head and "max_workers" not in kind:
            yield f"available_node_types.{name}.max_workers: is missing, so costs are not limited"
        if kind.get("min_workers", 0) > kind.get("max_workers", document.get("max_workers", 0)):
            yield f"available_node_types.{name}: min_workers is above max_workers"


def _hosts(document: Json) -> Iterator[str]:
    """For existing machines: valid addresses, and an ssh key."""
    if not is_local(document):
        return
    provider = document["provider"]
    if "coordinator_address" in provider:
        return
    for key in ("head_ip", "worker_ips"):
        if key not in provider:
            yield f"provider.{key} is missing"
    addresses = [provider.get("head_ip"), *provider.get("worker_ips", [])]
    for twice in sorted({str(ip) for ip in addresses if addresses.count(ip) > 1}):
        yield f"provider: {twice} is listed twice, but a machine can run only one Ray node"
    key = document.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield f"auth.ssh_private_key: file {key} does not exist"


def _manifest(document: Json) -> Iterator[str]:
    """Problems of a RayCluster, RayJob or RayService."""
    spec: Any = document.get("spec") or {}
    for key in MANIFESTS[document["kind"]]:
        spec = spec.get(key) or {}
    here = importlib.metadata.version("ray")
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions: mode is not token, so any client that reaches the cluster can run code: add mode: token"
    if str(spec.get("rayVersion", "")).split(".")[:2] != here.split(".")[:2]:
        version = spec.get("rayVersion")
        yield f"rayVersion: {version} on the cluster, but Ray {here} on this machine: use the same minor release"
    head = spec.get("headGroupSpec") or {}
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield f"headGroupSpec.serviceType: {head['serviceType']} exposes the dashboard: use ClusterIP and a tunnel"
    if head.get("enableIngress"):
        yield "headGroupSpec.enableIngress exposes the dashboard: remove it, and use kubectl port-forward"
    groups = spec.get("workerGroupSpecs") or []
    for group in groups:
        name = group.get("groupName", "?")
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", -1):
            yield f"workerGroupSpecs.{name}: needs minReplicas <= replicas <= maxReplicas"
    for where, group in [("headGroupSpec", head), *((f"workerGroupSpecs.{g.get('groupName')}", g) for g in groups)]:
        containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or []
        if not containers:
            yield f"{where}: has no container"
        for container in containers:
            for there in RAY_VERSION.findall(str(container.get("image"))):
                if there.split(".")[:2] != here.split(".")[:2]:
                    yield f"{where}: image {container['image']} has Ray {there}, but this machine has Ray {here}"


def _commands(document: Json) -> list[str]:
    return [command for key in COMMANDS for command in document.get(key, [])]


def _texts(document: Json) -> list[str]:
    kinds = (document.get("available_node_types") or {}).values()
    return [*_commands(document), *(json.dumps(kind) for kind in kinds), json.dumps(document.get("docker") or {})]
