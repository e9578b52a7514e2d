"""`genflow serve`: the hosts that an endpoint admits come from the environment."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from genflow.cli.app import app
from genflow.storage.store import Store


def test_the_allowed_hosts_reach_the_application(
    model_store: tuple[Store, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GENFLOW_ALLOWED_HOSTS is split at commas and blanks, and is part of the deployed application."""
    store, models = model_store
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    monkeypatch.setenv("GENFLOW_ALLOWED_HOSTS", "Models.example.org, other.example")
    out = tmp_path / "serve.yaml"
    done = CliRunner().invoke(app, ["serve", models[0].run, "--config-out", str(out)])
    assert done.exit_code == 0, done.output
    written = yaml.safe_load(out.read_text(encoding="utf-8"))["applications"][0]["args"]
    assert written["hosts"] == ["models.example.org", "other.example"]
