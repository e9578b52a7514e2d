"""cluster.yaml is one that Ray's launcher takes, and that is safe as it ships."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load(FILE.read_text())


def test_rays_own_schema_accepts_it(cluster):
    """Ray ships the schema that `ray up` checks."""
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_its_first_line_is_the_command_that_uses_it():
    """A file explains itself."""
    assert FILE.read_text().startswith("# ray up cluster.yaml")


def test_it_is_closed_to_strangers(cluster):
    """Token authentication on every node, a private token file, the dashboard on the loopback."""
    starts = [" ".join(cluster[f"{node}_start_ray_commands"]) for node in ("head", "worker")]

    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])
    assert not cluster["available_node_types"]["gpu"]["min_workers"]
