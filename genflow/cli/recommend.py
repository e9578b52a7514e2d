"""`genflow recommend`."""

import re
from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.options import AsJson, complete_data
from genflow.commands.references import find_named
from genflow.errors import UsageError
from genflow.system.documents import Json
from genflow.system.streams import NONE


def recommend(
    max_latency: Annotated[str, typer.Option(metavar="TIME", help="Longest time for one sample, such as 50ms.")] = "",
    min_quality: Annotated[
        str, typer.Option(metavar="FD", help="Largest acceptable fd: 2.5, or 3x for three times the floor.")
    ] = "",
    data: Annotated[str, typer.Option(help="Dataset; default: the newest.", autocompletion=complete_data)] = "",
    json: AsJson = False,
) -> None:
    """Recommend a run, sampler and number of steps to deploy, from all measurements in the store."""
    from genflow.evaluation import selection
    from genflow.storage.store import Store
    from genflow.training.verdict import cautions

    most_ms = parse_latency(max_latency) if max_latency else None
    store = Store()
    choices = selection.choices(store, find_named(store, "datasets", data).id if data else "")
    most_fd = parse_quality(min_quality, choices[0]["fd"]["floor"]) if min_quality else None
    chosen = selection.choose(choices, most_ms, most_fd)
    best = selection.front(choices)
    runs = {choice["run"]: choice["name"] for choice in choices}
    named = {name if list(runs.values()).count(name) == 1 else run: run for run, name in runs.items()}
    warned = cautions({name: store.find("runs", run).meta for name, run in named.items()})
    document = {
        "schema": "genflow.recommend/1",
        **chosen,
        "commands": commands(chosen),
        "front": best,
        "measured": len(choices),
        "cautions": warned,
        "warning": selection.warning(choices),
        "max_latency_ms": most_ms,
        "max_fd": most_fd,
    }
    if json:
        console.document(document)
        return
    if first := [*warned, *([document["warning"]] if document["warning"] else [])]:
        print("\n".join(console.wrapped(sentence) for sentence in first) + "\n")
    rows = [_row(point, point is chosen) for point in best]
    if not any(point is chosen for point in best):
        rows.insert(0, _row(chosen, True))
    fd, few = f"{chosen['fd_name']} (95 %)", f" ({chosen['fd']['n']:,})" if chosen["fd_name"] != "fd" else ""
    header = ("", "run", "family", "sampler", "steps", "nfe", fd, f"× floor{few}", "ms alone", "ms in 64")
    print(console.table(header, rows, left=4))
    print(f"\n{console.wrapped(summary_sentence(chosen, len(choices)))}")
    console.next_commands(*document["commands"])


def parse_latency(text: str) -> float:
    """`50ms`, `0.2s` or `50` as milliseconds.

    Raises:
        UsageError: the text is not a time above 0.
    """
    found = re.fullmatch(r"([\d.]+)\s*(ms|s|)", text.strip())
    value = _number(found[1]) if found else None
    if found is None or not value:
        raise UsageError(f"--max-latency must be a time such as 50ms or 0.2s, not {text!r}", "--max-latency 50ms")
    return value * (1000 if found[2] == "s" else 1)


def parse_quality(text: str, floor: float | None) -> float:
    """`2.5` as a distance, `3x` as three times the floor.

    Raises:
        UsageError: the text is neither, or is a multiple of an unknown floor.
    """
    found = re.fullmatch(r"([\d.]+)\s*(x|×|)", text.strip())
    value = _number(found[1]) if found else None
    if found is None or not value or (found[2] and not floor):
        raise UsageError(
            f"--min-quality must be an fd such as 2.5, or 3x for three times the floor, not {text!r}",
            "--min-quality 2.5",
        )
    return value * (floor or 1 if found[2] else 1)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def commands(chosen: Json) -> list[str]:
    """The command that serves the run, and the command that draws from the endpoint with the chosen settings."""
    import shlex

    options = {key: value for key, value in chosen["options"].items() if key in ("steps", "sampler", "guidance")}
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    ask = shlex.join(["genflow", "sample", "--endpoint", "http://127.0.0.1:8000", *flags])
    return [shlex.join(["genflow", "serve", chosen["run"]]), ask]


def summary_sentence(chosen: Json, measured: int) -> str:
    """The recommendation as a sentence."""
    from genflow.evaluation.report.table import number

    how = f" with {chosen['options']['sampler']}" if chosen["options"].get("sampler") else ""
    steps = f" in {chosen['options']['steps']} steps" if chosen["options"].get("steps") else ""
    equal = f" fd does not distinguish it from {chosen['equal']}." if chosen["equal"] else ""
    quality = f"{chosen['fd_name']} {number(chosen['fd']['value'])}"
    return (
        f"Deploy {chosen['name']}{how}{steps}: {quality}, {number(chosen['ms_alone'])} ms for a single sample; "
        f"chosen from {measured} measured settings of runs on {chosen['dataset']}.{equal}"
    )


def _row(point: Json, chosen: bool) -> tuple[str, ...]:
    from genflow.evaluation.report.table import number

    fd = point["fd"]
    return (
        "→" if chosen else "", point["run"], point["family"], str(point["options"].get("sampler") or NONE),
        str(point["options"].get("steps") or NONE), str(point["nfe"]),
        f"{number(fd['value'])} ({number(fd['low'])}–{number(fd['high'])})",
        f"{fd['value'] / fd['floor']:.1f}" if fd["floor"] else NONE,
        number(point["ms_alone"]), number(point["ms_per_image"]),
    )  # fmt: skip
