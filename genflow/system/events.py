"""How a job reports to the command that started it: one JSON event per line, on standard output.

A job may run in a child process, in a Ray task, or on a remote cluster. In every case its standard output reaches the
command. Ray may add a prefix to a line, so each event starts with a mark:

    ::genflow::{"event": "progress", "stage": "train", "step": 1200, ...}

Events: `progress` (a step of a stage), `waiting` (what a stage waits for), `plan` (what a stage is about to do),
`picture` (samples in training), `stages` and `stage` (of a pipeline), `note` (one line for the user), `warning`,
`result` (the job's document, exactly one) and `error` (message, hint, code). `jobs/` emits the events; the command line
displays them.
"""

import json
import os
import sys
from typing import Any

MARK = "::genflow::"

STAGE = "GENFLOW_PIPELINE_STAGE"  # set in a process that runs a stage of a pipeline: its name

Event = dict[str, Any]


def emit(event: str, **fields: Any) -> None:
    """Print one event as one line and flush it; the event of a stage of a pipeline has the stage's name as `of`."""
    if name := os.environ.get(STAGE):
        fields = {"of": name, **fields}
    print(MARK + json.dumps({"event": event, **fields}, default=str), file=sys.stdout, flush=True)


def parse(line: str) -> Event | None:
    """The event in a line of output, after any prefix; None if the line has no event."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
