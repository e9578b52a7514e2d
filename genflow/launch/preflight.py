"""What can be known of a cluster before a job is sent to it: one list, which commands obey and the doctor shows.

Each check is one line with its cure and its exit code. The last of them ask every node, by a job of a few seconds
(`jobs/probe.py`); what it found is remembered for an hour, as long as the cluster has the same nodes.
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
from genflow.system.source_hash import digest
from genflow.tracking import database

Document = dict[str, Any]
Probe = Callable[[Document], Document]

PROBE_CACHE_S = 3600.0
ALLOW_OPEN = "GENFLOW_OPEN_CLUSTER"  # set to 1, a cluster that asks nobody for a token will do, off the loopback, too


@dataclass(frozen=True)
class Check:
    """One line of a list of checks.

    Args:
        name: what was looked at.
        ok: whether it will do.
        found: what there is, or what is wrong with it.
        cure: the command that mends it.
        code: the exit code of a command that meets it.
    """

    name: str
    ok: bool
    found: str
    cure: str = ""
    code: int = SetupError.code

    def error(self) -> GenflowError:
        """What a command ends with that obeys this check."""
        return BY_CODE.get(self.code, GenflowError)(self.found, self.cure)


def raise_first_failure(checks: Iterator[Check]) -> None:
    """Raise what the first check that fails says."""
    for check in checks:
        if not check.ok:
            raise check.error()


def checks(dashboard: Dashboard, document: Document, store: Store, probe: Probe) -> Iterator[Check]:
    """Every check, in the order in which one needs another; nothing after what makes the rest unknowable.

    Args:
        dashboard: of the cluster.
        document: the job's, with what it asks for.
        store: where artifacts go.
        probe: runs `jobs/probe.py` on the cluster, and returns what it found.
    """
    facts: Document = {}

    def learn(key: str, look: Callable[[], Any]) -> Callable[[], str]:
        def told() -> str:
            facts[key] = look()
            return str(facts[key])

        return told

    steps: list[tuple[str, Callable[[], str], bool]] = [
        ("address", lambda: dashboard.address if learn("mode", dashboard.mode)() else "", True),
        ("Ray there", learn("ray", dashboard.ray_version), True),
        ("token", lambda: _authentication(dashboard, facts["mode"]), False),
        ("Python there", dashboard.python_version, False),
        ("genflow there", lambda: f"{__version__} travels with the job", False),
        ("nodes", lambda: f"{len(learn('nodes', dashboard.nodes)() and facts['nodes'])}", True),
        ("resources", lambda: _resources(facts["nodes"], document), False),
        ("upload", bundle.describe_size, False),
        ("MLflow", lambda: _tracking(facts["nodes"]), False),
    ]
    well = True
    for name, look, needed in steps:
        check = _attempt(name, look)
        yield check
        well &= check.ok
        if needed and not check.ok:
            return
    if well:
        yield from _probe_nodes(dashboard, facts["nodes"], store, probe)


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except GenflowError as error:
        return Check(name, False, error.message, error.hint, error.code)


def _authentication(dashboard: Dashboard, mode: str) -> str:
    """That the cluster asks for a token, where others could reach it."""
    if mode == "token":
        return "asked for, and taken"
    if dashboard.is_local:
        return "not asked for, on this machine's loopback"
    if os.environ.get(ALLOW_OPEN) == "1":
        return f"not asked for, and {ALLOW_OPEN}=1 says that this is meant"
    raise ClusterError(
        f"{dashboard.address} asks nobody for a token: whoever reaches it owns it, and what you send",
        f"start Ray there with RAY_AUTH_MODE=token, or say {ALLOW_OPEN}=1",
    )


def _resources(nodes: list[Document], document: Document) -> str:
    """That the cluster can ever hold what is asked for; how far one that grows may grow, the job on the head knows."""
    stages = document["pipeline"]["stages"].values() if "pipeline" in document else [document.get("recipe", {})]
    sections = [Cluster(**stage.get("cluster", {})) for stage in stages]
    have = ", ".join(f"{sum(n['resources'].get(kind, 0) for n in nodes):g} {kind}" for kind in ("CPU", "GPU"))
    if any(node["group"] for node in nodes):
        return f"{have}, and it grows with the work"
    for section in sections:
        capacity.require([n["resources"] for n in nodes], section.workers, section.cpus, section.gpus)
    return have


def _tracking(nodes: list[Document]) -> str:
    """That MLflow, where one is named, is no file of one machine and no secret."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if re.match(r"[^/]*//[^/@]*@", uri):
        raise UsageError("MLFLOW_TRACKING_URI holds a password, which everybody on the cluster could read",
                         "take it out; MLFLOW_TRACKING_USERNAME and _PASSWORD belong on the head")  # fmt: skip
    if not uri:
        return "in the store"
    database.refuse_local_uri_on_cluster(uri, len(nodes))
    return uri


def _probe_nodes(dashboard: Dashboard, nodes: list[Document], store: Store, probe: Probe) -> Iterator[Check]:
    """What every node says of itself."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    key = [dashboard.address, sorted(node["id"] for node in nodes), store.url, uri]
    memory = store.root / "probes" / f"{digest(key, 16)}.json"
    if (found := _cached_probe(memory)) is None:
        marker = memory.with_name(f"{secrets.token_hex(8)}.marker")
        try:
            write_atomically(marker, marker.stem.encode())
            found = probe({"store": store.url, "marker": str(marker), "uri": uri})["nodes"]
        except GenflowError as error:
            yield Check("nodes", False, error.message, error.hint, error.code)
            return
        finally:
            marker.unlink(missing_ok=True)
    every = list(_node_checks(found, store.url, uri))
    if all(check.ok for check in every):
        write_atomically(memory, json.dumps(found).encode())
    yield from every


def _node_checks(found: list[Document], store: str, uri: str) -> Iterator[Check]:
    """The nodes' answers as checks; the first node that lacks something is named."""
    cures = {
        "requirements": "install genflow's requirements there, and start Ray with that environment first on PATH",
        "store": f"mount {store} there under the same path, or let GENFLOW_STORE name one that every node sees",
        "MLflow": f"let every node reach {uri}, or unset MLFLOW_TRACKING_URI",
    }
    well = {"requirements": "every one has them", "store": f"every one sees {store}",
            "MLflow": f"every one reaches {uri}" if uri else "in the store"}  # fmt: skip
    for name, cure in cures.items():
        bad = [node for node in found if node[name]]
        where = [f"the node {node['name']} ({node['address']}) {node[name]}" for node in bad]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield Check(f"nodes: {name}", not bad, where[0] + more if bad else well[name], cure if bad else "")


def _cached_probe(memory: Path) -> list[Document] | None:
    try:
        if time.time() - memory.stat().st_mtime < PROBE_CACHE_S:
            found: list[Document] = json.loads(memory.read_text())
            return found
    except (OSError, ValueError):
        pass
    return None
