"""Checks of a cluster before a job is sent to it. Commands stop at the first failure; `genflow doctor` shows all.

Each check has one line of text, a fix and an exit code. The last checks run a probe job of a few seconds on every node
(`jobs/probe.py`). Its result is cached for an hour while the cluster has the same nodes.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.errors import BY_CODE, ClusterError, GenflowError, SetupError, UsageError
from genflow.launch import bundle, capacity
from genflow.launch.ray_dashboard import Dashboard
from genflow.recipe.schema import Cluster
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.system.source_hash import digest
from genflow.tracking import database

Probe = Callable[[Json], Json]

PROBE_CACHE_S = 3600.0  # maximum age of a cached probe result
ALLOW_OPEN = "GENFLOW_OPEN_CLUSTER"  # 1 permits a remote cluster without token authentication


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: what was checked.
        ok: whether the check passed.
        found: the observed value, or the problem.
        cure: how to fix the problem.
        code: exit code of a command that stops at this check.
    """

    name: str
    ok: bool
    found: str
    cure: str = ""
    code: int = SetupError.code

    def error(self) -> GenflowError:
        """The error for a failed check."""
        return BY_CODE.get(self.code, GenflowError)(self.found, self.cure)


def raise_first_failure(checks: Iterator[Check]) -> None:
    """Raise the error of the first failed check, if there is one."""
    for check in checks:
        if not check.ok:
            raise check.error()


def checks(dashboard: Dashboard, document: Json, store: Store, probe: Probe) -> Iterator[Check]:
    """Run the checks in order of dependence; stop if the remaining checks depend on a failed one.

    Args:
        dashboard: dashboard of the cluster.
        document: recipe and inputs of the job, with the resources that it requests.
        store: where the job writes artifacts.
        probe: runs `jobs/probe.py` on the cluster and returns its result.
    """
    facts: Json = {}

    def save(key: str, query: Callable[[], Any]) -> Callable[[], str]:
        def query_and_save() -> str:
            facts[key] = query()
            return str(facts[key])

        return query_and_save

    steps: list[tuple[str, Callable[[], str], bool]] = [
        ("address", lambda: dashboard.address if save("mode", dashboard.mode)() else "", True),
        ("Ray there", save("ray", dashboard.ray_version), True),
        ("token", lambda: _authentication(dashboard, facts["mode"]), False),
        ("Python there", dashboard.python_version, False),
        ("genflow there", lambda: f"{__version__} is uploaded with the job", False),
        ("nodes", lambda: f"{len(save('nodes', dashboard.nodes)() and facts['nodes'])}", True),
        ("resources", lambda: _resources(facts["nodes"], document), False),
        ("upload", bundle.describe_size, False),
        ("MLflow", lambda: _tracking(facts["nodes"]), False),
    ]
    passed = True
    for name, query, required in steps:
        check = _attempt(name, query)
        yield check
        passed &= check.ok
        if required and not check.ok:
            return
    if passed:
        yield from _probe_nodes(dashboard, facts["nodes"], store, probe)


def _attempt(name: str, query: Callable[[], str]) -> Check:
    try:
        return Check(name, True, query())
    except GenflowError as error:
        return Check(name, False, error.message, error.hint, error.code)


def _authentication(dashboard: Dashboard, mode: str) -> str:
    """Require token authentication unless the cluster is on the loopback or the user permits an open cluster."""
    if mode == "token":
        return "required, and accepted"
    if dashboard.is_local:
        return "not required on this machine's loopback"
    if os.environ.get(ALLOW_OPEN) == "1":
        return f"not required, permitted by {ALLOW_OPEN}=1"
    raise ClusterError(
        f"{dashboard.address} requires no token: any client that reaches it can run code and read your jobs",
        f"start Ray on the cluster with RAY_AUTH_MODE=token, or set {ALLOW_OPEN}=1",
    )


def _resources(nodes: list[Json], document: Json) -> str:
    """Require enough total resources for the workers. For an autoscaling cluster, the job on the head checks this."""
    stages = document["pipeline"]["stages"].values() if "pipeline" in document else [document.get("recipe", {})]
    sections = [Cluster(**stage.get("cluster", {})) for stage in stages]
    have = ", ".join(f"{sum(n['resources'].get(kind, 0) for n in nodes):g} {kind}" for kind in ("CPU", "GPU"))
    if any(node["group"] for node in nodes):
        return f"{have}, with autoscaling"
    for section in sections:
        gpus = 0 if section.gpus == "auto" else section.gpus
        capacity.require([n["resources"] for n in nodes], section.workers, section.cpus, gpus)
    return have


def _tracking(nodes: list[Json]) -> str:
    """Require a tracking URI that all nodes can use and that contains no password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if re.match(r"[^/]*//[^/@]*@", uri):
        raise UsageError("MLFLOW_TRACKING_URI contains a password, which all users of the cluster could read",
                         "remove it, and set MLFLOW_TRACKING_USERNAME and _PASSWORD on the head")  # fmt: skip
    if not uri:
        return "in the store"
    database.refuse_local_uri_on_cluster(uri, len(nodes))
    return uri


def _probe_nodes(dashboard: Dashboard, nodes: list[Json], store: Store, probe: Probe) -> Iterator[Check]:
    """Probe every node, or use the cached result for the same nodes; yield the checks."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    key = [dashboard.address, sorted(node["id"] for node in nodes), store.url, uri]
    cache = store.root / "probes" / f"{digest(key, 16)}.json"
    if (found := _cached_probe(cache)) is None:
        marker = cache.with_name(f"{secrets.token_hex(8)}.marker")
        try:
            write_atomically(marker, marker.stem.encode())
            found = probe({"store": store.url, "marker": str(marker), "uri": uri})["nodes"]
        except GenflowError as error:
            yield Check("nodes", False, error.message, error.hint, error.code)
            return
        finally:
            marker.unlink(missing_ok=True)
    checks = list(_node_checks(found, store.url, uri))
    if all(check.ok for check in checks):
        write_atomically(cache, json.dumps(found).encode())
    yield from checks


def _node_checks(found: list[Json], store: str, uri: str) -> Iterator[Check]:
    """Convert the probe results to checks; a failed check names the first node with the problem."""
    cures = {
        "requirements": "install genflow's requirements on it, and start Ray with that environment first on PATH",
        "store": f"mount {store} on it under the same path, or set GENFLOW_STORE to a folder that all nodes share",
        "MLflow": f"make {uri} reachable from every node, or unset MLFLOW_TRACKING_URI",
    }
    passed = {
        "requirements": "installed on every node",
        "store": f"every node has {store}",
        "MLflow": f"every node reaches {uri}" if uri else "in the store",
    }
    for name, cure in cures.items():
        bad = [node for node in found if node[name]]
        where = [f"node {node['name']} ({node['address']}) {node[name]}" for node in bad]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield Check(f"nodes: {name}", not bad, where[0] + more if bad else passed[name], cure if bad else "")


def _cached_probe(cache: Path) -> list[Json] | None:
    """The cached probe result, if it is younger than PROBE_CACHE_S."""
    try:
        if time.time() - cache.stat().st_mtime < PROBE_CACHE_S:
            found: list[Json] = json.loads(cache.read_text(encoding="utf-8"))
            return found
    except (OSError, ValueError):
        pass
    return None
