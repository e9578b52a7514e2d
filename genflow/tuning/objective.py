"""A function in place of training, to test a search where the optimum is known."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, UsageError
from genflow.system.documents import Json
from genflow.tuning.reports import Measured


class ObjectiveTrial:
    """A trial whose metrics are a function of the settings and of the share of the budget.

    Args:
        name: `module:function`.
        params: the settings.
        wanted: the metrics; if the function returns one number, it is the first metric.
    """

    def __init__(self, name: str, params: Json, wanted: Sequence[str]) -> None:
        self.function, self.params, self.wanted = load_objective(name), params, wanted

    def advance(self, share: float) -> Measured:
        """Call the function."""
        answer = self.function(self.params, share)
        values = dict(answer) if isinstance(answer, dict) else {self.wanted[0]: answer}
        return {"values": {name: float(values[name]) for name in self.wanted}}


def load_objective(name: str) -> Callable[[Json, float], Any]:
    """Import the function that `module:function` or `path/to/file.py:function` names.

    Raises:
        UsageError: it cannot be imported.
    """
    module, _, function = name.rpartition(":")
    try:
        if not module.endswith(".py"):
            return getattr(importlib.import_module(module), function)
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, function)
    except Exception as error:  # the file is the user's own: importing it may raise anything
        raise UsageError(f"no objective {name!r}: {one_line(error)}", "--objective FILE.py:FUNCTION") from error


def source_text(name: str) -> str:
    """The source text of the objective's file, which is part of the search's content address; empty for a module."""
    file = Path(name.rpartition(":")[0])
    return file.read_text(errors="replace", encoding="utf-8") if file.suffix == ".py" and file.is_file() else ""


def one_line(error: BaseException) -> str:
    """An error as one line; the type comes first unless it is one of genflow's own errors."""
    text = error.message if isinstance(error, GenflowError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
