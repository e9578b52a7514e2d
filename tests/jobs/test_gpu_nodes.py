"""A training on nodes with GPUs that Ray counts and that do not exist: placement, a lost node, a node that is late.

See `support/gpu_nodes.py`, which is one child process: it takes half a minute, because every attempt starts workers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support import ROOT, TESTS

from genflow.data.prepare import in_process, prepare
from genflow.recipe.schema import Cluster, Data
from genflow.storage.store import Store
from genflow.system import events
from jobs.runtime.train import waiting, worker_group


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What happened on the cluster, and the notes of the job; in a short path, which Ray's sockets require."""
    with TemporaryDirectory(prefix="gf-", dir="/tmp") as folder:
        store = Store(Path(folder) / "store")
        prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), "OMP_NUM_THREADS": "1"}
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text("5ec4e7" * 10, encoding="utf-8")
        settings |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": f"{folder}/ray", "RAY_worker_niceness": "0"}
        Path(folder, "ray").mkdir()
        program = [sys.executable, TESTS / "support/gpu_nodes.py", folder, store.root]
        done = subprocess.run(program, env=settings, capture_output=True, encoding="utf-8", timeout=1200, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        heard = [event for line in done.stdout.splitlines() if (event := events.parse(line))]
        notes = [event["message"] for event in heard if event["event"] in ("note", "warning")]
        return {**json.loads((Path(folder) / "told.json").read_bytes()), "notes": notes}


@pytest.mark.slow
@pytest.mark.ray
def test_workers_with_gpus_are_on_as_few_nodes_as_possible(told: dict[str, Any]) -> None:
    """Three workers use two of three nodes: two of them share the node with two GPUs."""
    assert len(set(told["3 workers"])) == 2
    assert told["3 workers"].count(told["pair"]) == 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_node_is_awaited_and_replaced(told: dict[str, Any]) -> None:
    """One line names what is missing and how long it may take; the workers then resume from the shards."""
    assert told["shards"]
    assert any("all workers resume from the newest checkpoint" in note for note in told["notes"])
    awaited = "(at most 30 min) for nodes: 2 workers with 1 CPU and 1 GPU each; the running nodes have room for 1"
    lines = [note for note in told["notes"] if note.endswith(awaited)]
    assert lines[0].startswith("waiting (")
    assert any(line.startswith("waiting for ") for line in lines[1:])
    assert told["stopped"] == ""
    assert told["stopped at"] > told["lost after"]


@pytest.mark.slow
@pytest.mark.ray
def test_the_run_resumes_on_the_node_that_is_left(told: dict[str, Any]) -> None:
    """Two workers no longer fit, which the error says; one resumes from the shards of two, and ends with the whole."""
    asked = "2 workers with 1 CPU and 1 GPU each"
    assert told["too few"] == f"ResourceError: after 6 s the cluster has no room for {asked}"
    assert told["alone"] == ""
    assert told["ended at"] == told["stopped at"] + 20
    assert told["whole"]


def test_the_words_of_a_wait() -> None:
    """They name the workers, the room that there is, and the limit, which is 30 minutes on a cluster."""
    assert worker_group.START_S == 30 * 60
    assert waiting.line(Cluster(workers=4, cpus=2), 1, 0, 0.2, 1800) == (
        "waiting (at most 30 min) for nodes: 4 workers with 2 CPU and 1 GPU each; the running nodes have room for none"
    )
    assert waiting.line(Cluster(workers=1), 0, 0, 240, 1800).startswith(
        "waiting for 4 min (at most 30 min) for nodes: a worker with 1 CPU;"
    )
