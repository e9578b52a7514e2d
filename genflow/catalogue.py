"""What `genflow families` prints: every family's own words about itself, read from its code and never written twice."""

import inspect
from pathlib import Path
from typing import Any

from genflow import families, terminal
from genflow.exporting import forms
from genflow.families.base import Family, has_encoder
from genflow.recipe.files import read
from genflow.storage.files import write_atomically
from genflow.system.source_hash import resources_dir

COLUMNS = ("family", "objective", "evaluations", "likelihood", "conditional", "encode", "teacher", "export")
NONE = "—"
BEGIN, END = "<!-- genflow families -->\n", "<!-- end -->\n"


def describe(kind: str) -> dict[str, Any]:
    """One family as a JSON document."""
    family = families.family_class(kind)
    options = inspect.signature(family.sample).parameters
    preset = resources_dir() / "pipelines" / f"{kind}.yaml"
    return {
        "kind": kind,
        "title": family.title,
        "objective": family.objective,
        "steps": family.steps,
        "likelihood": family.likelihood,
        "players": list(family.players),
        "conditional": _is_conditional(family),
        "guidance": "guidance" in options,
        "codes": has_encoder(family),
        "teacher": family.teacher,
        "exports": forms(family),
        "learns_pairs": family.learns_pairs,
        "preset": read(preset) if preset.is_file() else {},
    }


def _is_conditional(family: type[Family]) -> bool:
    """Whether its loss looks at the batch's labels."""
    return "label" in inspect.getsource(family.loss)


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """A family's line of the table."""
    kinds = {"lower-bound": "lower bound", "ode-estimate": "ODE estimate", "exact-dequantized": "exact, dequantized"}
    return (
        found["kind"],
        found["objective"],
        found["steps"],
        kinds.get(found["likelihood"], NONE),
        _conditional(found),
        "yes" if found["codes"] else NONE,
        found["teacher"],
        ", ".join(form for form in found["exports"] if form != "safetensors") or NONE,
    )


def _conditional(found: dict[str, Any]) -> str:
    if not found["conditional"]:
        return NONE
    return "on class, with guidance" if found["guidance"] else "on class"


def markdown() -> str:
    """The table as Markdown."""
    head = ["", *COLUMNS[1:]]
    rows = [row(describe(kind)) for kind in families.kinds()]
    lines = [head, ["---"] * len(head), *([f"`{cells[0]}`", *cells[1:]] for cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rewritten(text: str) -> str:
    """A document with the table between its two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{markdown()}{END}{rest.partition(END)[2]}"


def show(*, json: bool, into: Path | None = None) -> None:
    """`genflow families`."""
    if into is not None:
        write_atomically(into, rewritten(into.read_text(encoding="utf-8")))
        return
    found = [describe(kind) for kind in families.kinds()]
    if json:
        terminal.document({"schema": "genflow.families/1", "families": found})
        return
    print(terminal.table(COLUMNS, [row(family) for family in found], left=len(COLUMNS)))
    terminal.next_commands("genflow train flow_matching --data NAME", "genflow train FAMILY --data NAME --dry-run")
