"""`genflow recipe`: the keys of a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.commands.keys import Key

WIDTH = 56  # characters of a meaning in a list of keys


def recipe(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="A key, a section, a family or a net; default: every section.")
    ] = "",
    json: AsJson = False,
    into: Annotated[Path | None, typer.Option(help="Write the page of all keys to this file.", hidden=True)] = None,
) -> None:
    """List the keys of a recipe, which --set sets, with meaning, default and range."""
    from dataclasses import asdict

    from genflow.commands import keys

    if into is not None:
        from genflow.storage.files import write_atomically

        write_atomically(into, keys.page())
        return
    found = keys.find(key) if key else [one for one in keys.every() if not one.of]
    if json:
        console.document({"schema": "genflow.keys/1", "keys": [asdict(one) for one in found]})
        return
    same = len({(one.name, one.meaning) for one in found}) == 1
    if same:
        _show(found)
    else:
        heads = ("key", "of", "default", "meaning") if any(one.of for one in found) else ("key", "default", "meaning")
        rows = [tuple(cell for head, cell in _row(one).items() if head in heads) for one in found]
        print(console.table(heads, rows, left=len(heads)))
    if not key:
        console.next_commands("genflow recipe train.lr", "genflow recipe flow_matching", "genflow recipe unet")


def _row(key: "Key") -> dict[str, str]:
    short = key.meaning if len(key.meaning) <= WIDTH else f"{key.meaning[: WIDTH - 1].rpartition(' ')[0]} …"
    return {"key": key.name, "of": key.of, "default": key.default, "meaning": short}


def _show(found: "list[Key]") -> None:
    """One key, which several families or nets may have with other defaults."""
    from genflow.commands.keys import presets

    first = found[0]
    print(f"{first.name}\n  {first.meaning}\n")
    for one in found:
        of = f"{one.of}: " if one.of else ""
        print(f"  {of}default {one.default or 'none'}; {one.values}")
    if own := presets(first.name):
        values = (f"{kind} {console.format_setting(value)}" for kind, value in own.items())
        print(f"  presets: {', '.join(values)}")
    print(f"\n  --set {first.name}=VALUE")
