"""`genflow families`: a table of the model families, generated from the attributes of their classes."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson
from genflow.system.documents import Json
from genflow.system.streams import NONE

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.families.base import Family

COLUMNS = ("family", "objective", "evaluations", "likelihood", "conditional", "encode", "teacher", "export")
BEGIN, END = "<!-- genflow families -->\n", "<!-- end -->\n"


def families(
    json: AsJson = False,
    into: Annotated[Path | None, typer.Option(help="Update the table in this Markdown file.", hidden=True)] = None,
) -> None:
    """List the model families: objective, network evaluations per sample, likelihood, encoder."""
    if into is not None:
        from genflow.storage.files import write_atomically

        write_atomically(into, update_table(into.read_text(encoding="utf-8")))
        return
    found = describe_all()
    if json:
        console.document({"schema": "genflow.families/1", "families": found})
        return
    print(console.table(COLUMNS, [_row(family) for family in found], left=len(COLUMNS)))
    console.next_commands("genflow train flow_matching --data NAME", "genflow train FAMILY --data NAME --dry-run")


def describe_all() -> list[Json]:
    """All families as JSON documents."""
    from genflow.families import family_class, kinds

    return [_describe(kind, family_class(kind)) for kind in kinds()]


def _describe(kind: str, family: "type[Family]") -> Json:
    from genflow.families.base import has_encoder
    from genflow.recipe.files import read
    from genflow.sampling.export import forms
    from genflow.system.source_hash import resources_dir

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
        "exports": list(forms(family)),
        "export_names": list(forms(family).values()),
        "learns_pairs": family.learns_pairs,
        "preset": read(preset) if preset.is_file() else {},
    }


def _is_conditional(family: "type[Family]") -> bool:
    """Whether a family learns from the labels of a batch."""
    return "batch.label" in inspect.getsource(family)


def _row(found: Json) -> tuple[str, ...]:
    """The table row of a family."""
    kinds = {"lower-bound": "lower bound", "ode-estimate": "ODE estimate", "exact-dequantized": "exact, dequantized"}
    return (
        found["kind"],
        found["objective"],
        found["steps"],
        kinds.get(found["likelihood"], NONE),
        _conditional(found),
        "yes" if found["codes"] else NONE,
        found["teacher"],
        ", ".join(name for name in found["export_names"] if name != "safetensors"),
    )


def _conditional(found: Json) -> str:
    if not found["conditional"]:
        return NONE
    return "on class or caption, with guidance" if found["guidance"] else "on class or caption"


def _markdown() -> str:
    """The table as Markdown."""
    head = ["", *COLUMNS[1:]]
    rows = [_row(found) for found in describe_all()]
    lines = [head, ["---"] * len(head), *([f"`{cells[0]}`", *cells[1:]] for cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def update_table(text: str) -> str:
    """Replace the table between the markers BEGIN and END with the current one."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{_markdown()}{END}{rest.partition(END)[2]}"
