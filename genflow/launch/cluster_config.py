"""What is wrong with a cluster's file, as far as it shows before any machine is asked for: one line a problem.

Files of Ray's launcher (`cluster.yaml`) are held against the schema that Ray ships, and Kubernetes manifests
(RayCluster, RayJob, RayService) against what KubeRay would refuse or leave open.
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

Document = dict[str, Any]

TOKEN = "RAY_AUTH_MODE=token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
RAY_PORTS = (6379, 8265, 10001)  # Ray's own ports, which no other network may reach
ANY_ADDRESS = ("0.0.0.0/0", "::/0")
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
MANIFESTS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
RAY_VERSION = re.compile(r"(?:rayproject/ray(?:-ml)?:|\bray(?:\[[^\]]*\])?==|\bray)(\d+\.\d+(?:\.\d+)?)")


def read(path: Path) -> Document:
    """A cluster's file; of several YAML documents, the one that describes a cluster.

    Raises:
        UsageError: there is none.
    """
    try:
        every = [part for part in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(part, dict)]
    except OSError as error:
        raise UsageError(f"no cluster's file {path}: {error.strerror}", "genflow cluster validate FILE") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = [part for part in every if part.get("kind") in MANIFESTS or "provider" in part or "cluster_name" in part]
    if not found:
        raise UsageError(f"{path} describes no cluster: it has neither `provider` nor a `kind` of KubeRay's")
    return found[0]


def is_manifest(document: Document) -> bool:
    """Whether it is one of KubeRay's, rather than the launcher's."""
    return document.get("kind") in MANIFESTS


def is_local(document: Document) -> bool:
    """Whether its machines are there already (`provider: {type: local}`)."""
    return bool(document.get("provider", {}).get("type") == "local")


def problems(document: Document, folder: Path) -> list[str]:
    """Everything that is wrong, in the order in which a reader meets it.

    Args:
        document: the file.
        folder: where its relative paths begin.
    """
    if is_manifest(document):
        return list(_manifest(document))
    broken = [f"{where}: {what}" for where, what in _schema(document)]
    if broken:  # what follows takes the shape for granted
        return broken
    return [
        *_token(document), *_exposed_ports(document), *_versions(document, folder), *_size_limits(document),
        *_hosts(document),
    ]  # fmt: skip


def _schema(document: Document) -> Iterator[tuple[str, str]]:
    """What Ray's own schema does not accept."""
    import jsonschema

    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(document):
        yield ".".join(map(str, error.absolute_path)) or "the file", error.message


def _token(document: Document) -> Iterator[str]:
    """Token authentication on every node, with a file that only its owner reads."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in document.get(key, []) if "ray start" in command]
        if not starts:
            yield f"{key}: nothing here starts Ray with {TOKEN}; Ray's default asks nobody for a token"
        elif not any(TOKEN in command for command in document[key]):
            yield f"{key}: Ray starts without {TOKEN}: whoever reaches it owns it"
    mounts = [Path(there).expanduser() for there in document.get("file_mounts", {}).values()]
    if environment.token_path() not in mounts:
        path = environment.token_path()
        yield f"file_mounts: Ray's token {path} does not travel: '~/.ray/auth_token': '{path}'"
    elif not environment.token_path().exists():
        yield f"file_mounts: there is no token {environment.token_path()} yet: genflow doctor makes it"
    elif stat.S_IMODE(environment.token_path().stat().st_mode) & 0o077:
        yield f"file_mounts: other users may read the token {environment.token_path()}: chmod 600 it"
    if not any("chmod 600" in command and "auth_token" in command for command in _commands(document)):
        yield "setup_commands: nothing keeps the token private on the nodes: chmod 600 ~/.ray/auth_token"
    for text in _texts(document):
        if re.search(r"RAY_AUTH_TOKEN=|--auth-token|AWS_SECRET_ACCESS_KEY=|PASSWORD=", text):
            yield "a secret stands in a command, where `ps` and every log show it: mount a file instead"
            break


def _exposed_ports(document: Document) -> Iterator[str]:
    """Nothing of Ray's listens where another network reaches it."""
    for command in document.get("head_start_ray_commands", []):
        host = re.search(r"--dashboard-host[= ](\S+)", command)
        if host and host[1] not in LOOPBACK:
            yield (f"head_start_ray_commands: --dashboard-host={host[1]} shows the dashboard to the network: "
                   "127.0.0.1, and `genflow cluster dashboard` opens a tunnel")  # fmt: skip
    for rule in (document.get("provider", {}).get("security_group") or {}).get("IpPermissions", []):
        ranges = [r.get("CidrIp") or r.get("CidrIpv6") for r in rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])]
        low, high = rule.get("FromPort", 0), rule.get("ToPort", 65535)
        open_ports = [str(port) for port in RAY_PORTS if low <= port <= high]
        if open_ports and set(ranges) & set(ANY_ADDRESS):
            yield f"provider.security_group: anybody reaches port {', '.join(open_ports)}: open 22 alone"


def _versions(document: Document, folder: Path) -> Iterator[str]:
    """Ray there is Ray here; Python there is new enough."""
    here = importlib.metadata.version("ray")
    texts = [(key, command) for key in COMMANDS for command in document.get(key, [])]
    texts += [("docker", str(image)) for key, image in (document.get("docker") or {}).items() if "image" in key]
    for local in document.get("file_mounts", {}).values():
        pinned = folder / Path(str(local)).expanduser() / "constraints.txt"
        if pinned.is_file():
            texts.append((str(pinned), "".join(re.findall(r"^ray==\S+$", pinned.read_text(), re.M))))
    for where, text in texts:
        for there in RAY_VERSION.findall(text):
            if there.split(".")[:2] != here.split(".")[:2]:
                yield f"{where}: Ray {there} there, and Ray {here} here: the same minor release on both sides"
        for python in re.findall(r"--python[= ](\d+)\.(\d+)", text):
            if tuple(map(int, python)) < (3, 11):
                yield f"{where}: Python {'.'.join(python)}: genflow needs 3.11 or newer"


def _size_limits(document: Document) -> Iterator[str]:
    """The cluster grows so far and no further, and its head stays."""
    kinds = document.get("available_node_types")
    if is_local(document):
        return
    if not kinds:
        yield "available_node_types: no kind of node is described, and Ray would choose"
        return
    head = document.get("head_node_type")
    if head not in kinds:
        yield f"head_node_type: {head!r} is none of {', '.join(kinds)}"
    elif "spot" in json.dumps(kinds[head]["node_config"]).lower() or "preemptible" in json.dumps(kinds[head]):
        yield f"available_node_types.{head}: the head on spot takes every job with it when it goes"
    if "max_workers" not in document:
        yield "max_workers: no bound is set: a bill may be"
    for name, kind in kinds.items():
        if name != head and "max_workers" not in kind:
            yield f"available_node_types.{name}.max_workers: no bound is set"
        if kind.get("min_workers", 0) > kind.get("max_workers", document.get("max_workers", 0)):
            yield f"available_node_types.{name}: min_workers is above max_workers"


def _hosts(document: Document) -> Iterator[str]:
    """Machines that are there already: addresses, and a key to reach them."""
    if not is_local(document):
        return
    provider = document["provider"]
    if "coordinator_address" in provider:
        return
    for key in ("head_ip", "worker_ips"):
        if key not in provider:
            yield f"provider.{key} is missing"
    every = [provider.get("head_ip"), *provider.get("worker_ips", [])]
    for twice in sorted({str(ip) for ip in every if every.count(ip) > 1}):
        yield f"provider: {twice} stands twice: one Ray a machine"
    key = document.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield f"auth.ssh_private_key: there is no {key}"


def _manifest(document: Document) -> Iterator[str]:
    """A RayCluster, RayJob or RayService."""
    spec: Any = document.get("spec") or {}
    for key in MANIFESTS[document["kind"]]:
        spec = spec.get(key) or {}
    here = importlib.metadata.version("ray")
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions: mode: token is not set: whoever reaches the cluster owns it"
    if str(spec.get("rayVersion", "")).split(".")[:2] != here.split(".")[:2]:
        yield f"rayVersion: {spec.get('rayVersion')} there, and Ray {here} here: the same minor release on both sides"
    head = spec.get("headGroupSpec") or {}
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield f"headGroupSpec.serviceType: {head['serviceType']} shows the dashboard outside: ClusterIP, and a tunnel"
    if head.get("enableIngress"):
        yield "headGroupSpec.enableIngress shows the dashboard outside: kubectl port-forward"
    groups = spec.get("workerGroupSpecs") or []
    for group in groups:
        name = group.get("groupName", "?")
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", -1):
            yield f"workerGroupSpecs.{name}: minReplicas <= replicas <= maxReplicas does not hold"
    for where, group in [("headGroupSpec", head), *((f"workerGroupSpecs.{g.get('groupName')}", g) for g in groups)]:
        containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or []
        if not containers:
            yield f"{where}: no container"
        for container in containers:
            for there in RAY_VERSION.findall(str(container.get("image"))):
                if there.split(".")[:2] != here.split(".")[:2]:
                    yield f"{where}: the image {container['image']} has Ray {there}, and here is Ray {here}"


def _commands(document: Document) -> list[str]:
    return [command for key in COMMANDS for command in document.get(key, [])]


def _texts(document: Document) -> list[str]:
    kinds = (document.get("available_node_types") or {}).values()
    return [*_commands(document), *(json.dumps(kind) for kind in kinds), json.dumps(document.get("docker") or {})]
