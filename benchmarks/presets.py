"""Compare the presets with the best settings that `genflow tune` finds for each family, and write a page.

    make presets                       python -m benchmarks.presets --out docs/results/tuning.md
    python -m benchmarks.presets --data digits --family gan --trials 6

A finished search is found by its recipe and does not run again; after an interruption, the same command resumes. A
preset is changed by hand, and only if the confirmation on fresh seeds upholds the difference.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from genflow.storage.store import Store
from genflow.system import environment, source_hash
from genflow.system.documents import Json
from genflow.tracking.journal import Cursor, journal_path

STEPS = {
    "flow_matching": 600, "ddpm": 600, "vae": 1000, "gan": 1000, "normalizing_flow": 600, "consistency": 400,
    "meanflow": 400,
}  # fmt: skip
TEACHER, TEACHER_STEPS = "teacher", 1200  # the initial run of consistency


def genflow(*words: str) -> Json:
    """Run a command with --json; return its document.

    Raises:
        SystemExit: the command failed; its error is on standard error.
    """
    command = [sys.executable, "-m", "genflow.cli", *words, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source_hash.resources_dir())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)
    found: Json = json.loads(done.stdout)
    return found


def words(family: str, asked: argparse.Namespace) -> list[str]:
    """The command that searches for a family's settings."""
    sets = [f"tune.steps={STEPS[family]}", "tune.rungs=2", f"cluster.workers={environment.cores()}"]
    sets += [f"tune.confirm={asked.confirm}"] if asked.confirm else []
    given = ["tune", family, "--data", asked.data, "--trials", str(asked.trials)]
    given += [word for value in sets for word in ("--set", value)]
    return [*given, *(["--init", TEACHER] if family == "consistency" else [])]


def command(asked: argparse.Namespace) -> str:
    """The command that makes the page."""
    given = ["--data", asked.data, *(word for family in asked.family or () for word in ("--family", family))]
    given += ["--trials", str(asked.trials), *(["--confirm", str(asked.confirm)] if asked.confirm else [])]
    return " ".join(["python -m benchmarks.presets", *given])


def page(found: dict[str, Json], asked: argparse.Namespace, store: Store) -> str:
    """The searches as Markdown."""
    first = next(iter(found.values()))
    lines = [
        f"<!-- Written by `{command(asked)}`. -->", "# The presets, tuned", "",
        f"`genflow tune` of each family over its preset's space on {asked.data} ({first['dataset']}), made by "
        f"`{command(asked)}` on {environment.cores()} cores. Trials are measured by {first['metrics'][0]} of "
        f"{first['samples']} samples against one half of the held-out rows. After a third of the steps only the better "
        "third of the trials continues. The best settings and the preset's are then trained again, in pairs, with "
        "fresh seeds, and measured against the other half. Only that difference counts, because the best of many noisy "
        "numbers is partly luck.", "",
        "| | steps | trials | tuned, fresh seeds | preset, fresh seeds | difference (95 %) | |",
        "|---|---:|---:|---|---|---|---|",
        *(_line(family, document) for family, document in found.items()), "",
    ]  # fmt: skip
    for family, document in found.items():
        lines += _section(family, document, asked, store)
    return "\n".join(lines)


def _line(family: str, document: Json) -> str:
    counts = document["counts"]
    trials = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    proof = document["confirmation"]
    head = f"| [{family}](#{family}) | {document['tune']['steps']:,} | {trials} |"
    if proof is None:
        return f"{head} — | — | — | the preset is the best that was tried |"
    gap = proof["difference"]
    ends = f" ({gap['low']:+.3g} to {gap['high']:+.3g})" if gap["low"] is not None else ""
    mine, theirs = (", ".join(f"{value:.3g}" for value in proof[side]) for side in ("best", "preset"))
    said = "confirmed" if proof["upheld"] else "not confirmed"
    return f"{head} {mine} | {theirs} | {gap['value']:+.3g}{ends} | {said} |"


def _section(family: str, document: Json, asked: argparse.Namespace, store: Store) -> list[str]:
    metric, keys = document["metrics"][0], list(document["space"])
    importance = document["importance"]
    lines = [f"## {family}", "", f"`genflow {' '.join(words(family, asked))}`: {document['seconds']:,.0f} s", ""]
    lines += ["| key | space | preset | best | explains |", "|---|---|---:|---:|---:|"]
    for key in keys:
        own = document["preset"]["params"].get(key) if document["preset"] else None
        share = f"{100 * importance[key]:.0f} %" if key in importance else "—"
        best = document["best"]["params"][key]
        lines.append(f"| {key} | `{document['space'][key]}` | {_value(own)} | {_value(best)} | {share} |")
    lines += ["", f"{document['confirmed'] or 'The preset itself came out best.'}", ""]
    lines += [f"| trial | state | steps | {metric} | {' | '.join(keys)} |", f"|{'---:|' * (4 + len(keys))}"]
    for row in document["ranked"]:
        values = " | ".join(_value(row["params"].get(key)) for key in keys)
        quality = f"{row['values'][metric]:.4g}" if metric in row["values"] else "—"
        lines.append(f"| {row['trial']} | {row['status']} | {row.get('step', 0):,} | {quality} | {values} |")
    run = Cursor.read(journal_path(store.root, document["search"])).run
    return [*lines, "", f"MLflow: experiment {document['dataset_name']}, run `{run or '—'}`.", ""]


def _value(value: Any) -> str:
    return "—" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--family", action="append", choices=list(STEPS), help="repeatable; default: every family")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--confirm", type=int, help="fresh seeds of the confirmation; default: the recipe's")
    parser.add_argument("--out", type=Path, help="write the page here; without it, print the page")
    asked = parser.parse_args()
    families = asked.family or list(STEPS)
    genflow("prepare", asked.data)
    if "consistency" in families:
        steps = f"train.steps={TEACHER_STEPS}"
        genflow("train", "flow_matching", "--data", asked.data, "--name", TEACHER, "--set", steps)
    found = {}
    for family in families:
        print(f"tuning {family}", file=sys.stderr, flush=True)
        found[family] = genflow(*words(family, asked))
    text = page(found, asked, Store())
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
