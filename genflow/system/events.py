"""How a job speaks to the person who waits for it: one JSON event a line, on standard output.

A job may run in a child process, in a Ray task, or on a cluster a continent away. In every case its
standard output reaches the command, perhaps with a prefix that Ray adds, so the event is marked:

    ::genflow::{"event": "progress", "stage": "train", "step": 1200, ...}

Events: `progress` (a step of a stage), `note` (one line to show), `warning`, `result` (the job's document,
exactly one) and `error` (message, hint, code). `jobs/` emit, `genflow.progress` draws.
"""

import json
import sys
from typing import Any

MARK = "::genflow::"

Event = dict[str, Any]


def emit(event: str, **fields: Any) -> None:
    """Print one event as one line, whole, at once."""
    print(MARK + json.dumps({"event": event, **fields}, default=str), file=sys.stdout, flush=True)


def parse(line: str) -> Event | None:
    """The event in a line of output, whatever prefix stands before it; None if there is none."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
