"""Run a job that writes its journal but sends nothing to MLflow; sending costs three CPU seconds per run.

python -P without_mlflow.py train recipe.yaml
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from genflow.tracking import database, sync
from genflow.tracking.journal_replay import SendResult
from genflow.tracking.sender import Sender


def silence(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the functions that contact MLflow, for all jobs of this process."""

    def complete(*_: object, **__: object) -> SendResult:
        return SendResult(complete=True)

    def finish(self: Sender, deadline_s: float = 0.0) -> bool:
        self.sent = complete()
        return True

    patch(database, "prepare", lambda store: "")
    patch(sync, "catch_up", complete)
    patch(sync, "replay", complete)
    patch(Sender, "start", lambda self: None)
    patch(Sender, "finish", finish)


if __name__ == "__main__":
    from jobs.runtime.entrypoint import execute

    silence()
    execute(importlib.import_module(f"jobs.{sys.argv.pop(1)}").main)
