"""A function in place of training, to try a search where the optimum is known."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, UsageError
from genflow.tuning.reports import Measured

Document = dict[str, Any]


class ObjectiveTrial:
    """A trial that asks a function of the settings and of the share of the budget, and gets a number or several.

    Args:
        name: `module:function`.
        params: the settings.
        wanted: the metrics; a lone number is the first.
    """

    def __init__(self, name: str, params: Document, wanted: Sequence[str]) -> None:
        self.function, self.params, self.wanted = load_objective(name), params, wanted

    def advance(self, share: float) -> Measured:
        """Ask the function."""
        answer = self.function(self.params, share)
        values = dict(answer) if isinstance(answer, dict) else {self.wanted[0]: answer}
        return {"values": {name: float(values[name]) for name in self.wanted}}


def load_objective(name: str) -> Callable[[Document, float], Any]:
    """The function that `module:function`, or `path/to/file.py:function`, names.

    Raises:
        UsageError: there is none.
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
    except Exception as error:  # the file is a person's own: anything may be in it
        raise UsageError(f"no objective {name!r}: {one_line(error)}", "--objective FILE.py:FUNCTION") from error


def source_text(name: str) -> str:
    """What decides a function's answers beside its name: its file's text."""
    file = Path(name.rpartition(":")[0])
    return file.read_text(errors="replace") if file.suffix == ".py" and file.is_file() else ""


def one_line(error: BaseException) -> str:
    """An error in one line, its kind before it where it is nobody's words."""
    text = error.message if isinstance(error, GenflowError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
