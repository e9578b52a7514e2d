"""Make the quality table: train every family within its budget for a few seeds, measure it, and write a page.

    python benchmarks/results.py [--plan benchmarks/latents.yaml] [--set train.steps=10 ...] [--seeds 0,1]
                                 [--only ROW]... [--trained RUN ...] [--out docs/results.md]

The plan says what is trained and measured. It becomes one pipeline, so two cores train two runs at a time. After
an interruption, the same command resumes; after the end, it only writes the page. No number is written by hand.
`--trained` measures runs that exist, one for each seed, for example after a change of the measurements alone.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genflow.cli import console
from genflow.cli.progress import Progress
from genflow.errors import GenflowError
from genflow.evaluation.interval import over_trainings
from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text as likelihood
from genflow.launch import local
from genflow.pipeline import graph
from genflow.pipeline.study import Study
from genflow.recipe.compose import assignments
from genflow.runs import cpu_seconds
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.training.precision import multiplies_bfloat16

Found = dict[str, dict[int, Json]]  # by row and seed: a row of a `genflow.evaluate/1` document
PLAN = Path(__file__).with_suffix(".yaml")
NONE = "—"
HEAD = [
    "", "CPU s", "nfe", "fd", "× floor", "P / R", "recognised", "prompt / hard", "unseen / hard", "rec. fd / dB",
    "copies", "bits/dim", "to reach",
]  # fmt: skip
PROMPTS = """- **prompt / hard**: R-precision, the share of samples whose own caption fits better than 99 others: random
  ones / those with the most similar words, such as the same subject on another background
  ([prompt-fidelity.md](prompt-fidelity.md)). For real pictures it is {seen}.
- **unseen / hard**: the same for captions that no training row has; for real pictures {unseen}.
"""
BITS = """- **bits/dim**: ≤ marks a bound, ≈ the estimate of an ODE solver. Numbers of different kinds cannot be ranked.
"""
MADE_BY = {
    (): "make results",
    ("--plan", "benchmarks/latents.yaml", "--out", "docs/latents-results.md"): "make results-latents",
    ("--plan", "benchmarks/latents_families.yaml", "--out", "docs/latents-families.md"): (
        "make results-latents-families"
    ),
    ("--plan", "benchmarks/latents_128.yaml", "--out", "docs/latents-128.md"): "make results-latents-128",
    ("--plan", "benchmarks/latents_32.yaml", "--out", "docs/latents-32.md"): "make results-latents-32",
    ("--plan", "benchmarks/latents_photographs.yaml", "--out", "docs/latents-photographs.md"): (
        "make results-photographs"
    ),
    ("--plan", "benchmarks/text_to_image.yaml", "--out", "docs/text-to-image-results.md"): "make results-text-to-image",
}  # the commands of the Makefile by arguments


@dataclass(frozen=True, kw_only=True)
class Plan(Study):
    """A study whose rows have goals.

    Args:
        goal_floor: the floor of the features for which the goals of fd are stated.
        title: heading of the page.
        about: what the page compares, as Markdown.
    """

    goal_floor: float = 1.0
    title: str = "Results"
    about: str = ""


def measuring(plan: Plan, runs: list[str]) -> Json:
    """The pipeline that measures runs, one for each seed of the plan, in every row."""
    stages = {
        f"{row}-m{seed}": {**plan._evaluation_stage(row, seed), "runs": [run]}
        for seed, run in zip(plan.seeds, runs, strict=True)
        for row in plan.rows
    }
    return {"name": "results", "stages": stages}


def execute(plan: Plan, pipeline: Json, overrides: Json, store: Store) -> tuple[Found, list[str]]:
    """Run the missing stages; a stage that fails does not stop the others.

    Returns:
        The measurements by row and seed, without those of failed stages; and the failed stages' messages.

    Raises:
        GenflowError: the pipeline failed outside of a stage.
    """
    found: Found = {name: {} for name in plan.rows}
    problems: list[str] = []
    document = {"pipeline": pipeline, "overrides": overrides}
    with Progress() as progress:

        def on_event(event: Json) -> None:
            progress(event)
            if event["event"] != "stage":
                return
            name, _, seed = event["name"].rpartition("-m")
            if event["status"] in ("done", "cached") and name in found:
                found[name][int(seed)] = event["document"]["rows"][0]
            elif event["status"] == "failed":
                problems.append(f"{event['name']}: {event['message']}")

        try:
            local.run_local("pipeline", document, store, on_event)
        except GenflowError as error:
            if not problems:  # the error is not that of a stage
                raise
            print(f"error: {error.message}", file=sys.stderr)
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}, problems


def without_goals(plan: Plan) -> Plan:
    """The plan without the goals, which hold only for the plan's own data, budgets and N."""
    return replace(plan, rows={name: {**row, "goal": {}} for name, row in plan.rows.items()})


def write(plan: Plan, found: Found, problems: list[str], command: str, store: Store, out: Path) -> None:
    """Write the page, and in a folder next to it the grids of the first seed and the numbers as JSON."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, seeds in found.items():
        if seeds:
            _copy_picture(Path(seeds[min(seeds)]["path"]) / "grid.png", folder / f"{name}.png")
    first = next((row for seeds in found.values() for row in seeds.values()), None)
    if first is None:
        raise GenflowError("nothing was measured", "; ".join(problems))
    _copy_picture(Path(first["path"]) / "real.png", folder / "real.png")
    kept = ("run", "metrics", "likelihood", "memorization", "nfe", "options", "training", "features", "seed")
    numbers = {name: [{key: row[key] for key in kept} for row in seeds.values()] for name, seeds in found.items()}
    (folder / "results.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    out.write_text(page(plan, found, problems, command, store, folder.name), encoding="utf-8")


def _copy_picture(source: Path, target: Path) -> None:
    """Copy a grid; one in colour gets a palette, because the repository keeps small files."""
    with Image.open(source) as picture:
        if picture.mode == "RGB":
            picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
            return
    shutil.copyfile(source, target)


def page(plan: Plan, found: Found, problems: list[str], command: str, store: Store, folder: str) -> str:
    """The page as Markdown."""
    rows = [row for seeds in found.values() for row in seeds.values()]
    first = rows[0]
    measured = [_line(plan, name, found, store) for name in plan.rows]
    lines = _without_empty_columns([HEAD, ["---"] * len(HEAD), *measured])
    floor = np.mean([row["metrics"]["fd"]["floor"] for row in rows])
    recognised = first["metrics"].get("agreement")
    copies = (first["memorization"] or {}).get("copies", {}).get("floor")
    accuracy = f", {100 * first['features']['accuracy']:.1f} % accurate" if "accuracy" in first["features"] else ""
    about = f"""<!-- Written by `{command}`. Edit the plan in benchmarks/ and run it again. -->
# {plan.title}

{plan.about + chr(10) * bool(plan.about)}{first['dataset_name']}, {_count(found)} per run, made by
`{command}`
on {first['machine']} {_bfloat16()} fast bfloat16, torch {first['versions']['torch']}; one thread a run, as many runs
at a time as cores.
{first['samples']:,} samples against {first['reference']['rows']:,} real rows of the {first['reference']['split']}
split. Features: {first['features']['name']}{accuracy}.
The floor is {number(float(floor))}, the fd of as many real rows.

"""
    held_out = f" For held-out rows it is {100 * copies:.1f} %." if copies is not None else ""
    seen = f" For held-out rows it is {100 * recognised['floor']:.1f} %." if recognised else ""
    bits = any(row["likelihood"] for row in rows) * BITS
    prompts = ""
    if "r_precision" in first["metrics"]:
        of_real = (_fidelity(rows, name, "floor") for name in ("r_precision", "r_precision_unseen"))
        prompts = PROMPTS.format(**dict(zip(("seen", "unseen"), of_real, strict=True)))
    notes = f"""
- **CPU s**: CPU seconds of what a run is made from (an initial run or autoencoder, pairs, latents, text embeddings)
  + of its own training.
- **fd**: the mean over seeds, with its 95 % interval over seeds (Student's t; for one seed, over samples).
- **× floor**: the ratio of fd to the floor.
- **P / R**: precision and recall.
- **recognised**: the share of samples that the classifier assigns to the class that was asked for.
 {seen}
{prompts}- **rec. fd / dB**: fd and PSNR of the autoencoder's reconstructions; no model of the latents can be expected
  to have a smaller fd.
- **copies**: the share of samples that are near copies of one training row
  (`genflow/evaluation/metrics/memorization.py`).{held_out}
{bits}{_goals_note(plan)}
"""
    seeds = ["", *(f"seed {seed}" for seed in plan.seeds)]
    each = [seeds, ["---"] * len(seeds)]
    for name, row in plan.rows.items():
        values = [found[name].get(seed) for seed in plan.seeds]
        each.append([row["title"], *(number(v["metrics"]["fd"]["value"]) if v else NONE for v in values)])
    failed = "\n## What failed\n\n" + "".join(f"- {problem}\n" for problem in problems) if problems else ""
    grids = [f"**{row['title']}**\n\n![{row['title']}]({folder}/{name}.png)\n" for name, row in plan.rows.items()
             if found[name]]  # fmt: skip
    return (
        about + _table(lines) + notes + "## fd, seed by seed\n\n" + _table(each) + failed
        + "\n## Samples\n\nFrom the first seed; all grids start from the same noise.\n\n"
        + f"**Real**\n\n![Real]({folder}/real.png)\n\n"
        + "\n".join(grids)
    )  # fmt: skip


def _count(found: Found) -> str:
    """The number of seeds as text: the smallest, if runs failed or are not there yet."""
    counts = sorted({len(seeds) for seeds in found.values() if seeds})
    text = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{text} seed{'s' * (counts[-1] > 1)}"


def _goals_note(plan: Plan) -> str:
    """What the column of goals says; empty for a plan without goals."""
    goals = [row["goal"] for row in plan.rows.values() if row.get("goal")]
    if not goals:
        return ""
    of_rows = any("fd_of" in goal for goal in goals)
    reference = "that of another row, seed by seed" if of_rows else f"a floor of {plan.goal_floor}"
    left_out = "It is left out if `--set` changed the plan."
    return f"- **to reach**: the goal; for a distance, its ratio to {reference}.\n  {left_out}\n"


def _without_empty_columns(lines: list[list[str]]) -> list[list[str]]:
    """The table without the columns that have a value in no row; the first two lines are its head."""
    kept = [i for i in range(len(lines[0])) if any(line[i] != NONE for line in lines[2:])]
    return [[line[i] for i in kept] for line in lines]


def _bfloat16() -> str:
    """Whether this machine, which is the one that measures, multiplies bfloat16: its steps are much faster then."""
    return "with" if multiplies_bfloat16(torch.device("cpu")) else "without"


def _line(plan: Plan, name: str, rows: Found, store: Store) -> list[str]:
    row, seeds, goal_floor = plan.rows[name], rows[name], plan.goal_floor
    goals = row.get("goal", {})
    if "fd" in goals:
        goals = {**goals, "fd": goals["fd"] / goal_floor}
    if not seeds:
        return [row["title"], *[NONE] * (len(HEAD) - 2), _goal(goals, {}, plan.rows)]
    found = list(seeds.values())
    fd = [m["metrics"]["fd"] for m in found]
    ratio = _mean(m["value"] / m["floor"] if m["floor"] else np.nan for m in fd)
    over = over_trainings(fd)
    precision, recall = (_mean(m["metrics"][key]["value"] for m in found) for key in ("precision", "recall"))
    copies = [m["memorization"]["copies"]["value"] for m in found if m["memorization"]]
    agreement = [m["metrics"]["agreement"]["value"] for m in found if "agreement" in m["metrics"]]
    rebuilt = _reconstruction([m["reconstruction"] for m in found if m["reconstruction"]])
    bits = [m["likelihood"] for m in found if m["likelihood"]]
    text = NONE
    if bits:
        averaged = {key: _mean(b[key] for b in bits) for key in ("value", "stderr")}
        text = likelihood({**bits[0], **averaged})
        text += f" ({bits[0].get('method') or bits[0]['kind']})"
    reached: Json = {"fd": ratio, "recall": recall} | ({"bits": _mean(b["value"] for b in bits)} if bits else {})
    if "fd_of" in goals:
        other = rows.get(goals["fd_of"]["row"], {})  # `--only` may leave it out
        shared = [seed for seed in seeds if seed in other]
        reached |= {"fd_of": [_fd(seeds[seed]) / _fd(other[seed]) for seed in shared]} if shared else {}
    return [
        row["title"],
        _cpu(found, store),
        str(found[0]["nfe"]),
        f"{number(over.value)} ({number(max(over.low, 0))}–{number(over.high)})",
        f"{ratio:.1f}",
        f"{precision:.2f} / {recall:.2f}",
        f"{100 * _mean(agreement):.1f} %" if agreement else NONE,
        _fidelity(found, "r_precision"),
        _fidelity(found, "r_precision_unseen"),
        rebuilt,
        f"{100 * _mean(copies):.1f} %" if copies else NONE,
        text,
        _goal(goals, reached, plan.rows),
    ]


def _fidelity(found: list[Json], name: str, part: str = "value") -> str:
    """The mean of a R-precision over seeds, against random and against similar captions."""
    pairs = [[m["metrics"][key] for m in found if key in m["metrics"]] for key in (name, f"{name}_hard")]
    return " / ".join(f"{_mean(m[part] for m in own):.3f}" for own in pairs if own) or NONE


def _fd(measured: Json) -> float:
    return float(measured["metrics"]["fd"]["value"])


def _reconstruction(found: list[Json]) -> str:
    """fd and PSNR of an autoencoder's reconstructions."""
    if not found:
        return NONE
    return f"{number(_mean(r['fd']['value'] for r in found))} / {_mean(r['psnr']['value'] for r in found):.1f}"


def _cpu(found: list[Json], store: Store) -> str:
    """CPU seconds of all that a run is made from + of its own training, as text."""
    parts = [cpu_seconds(store, store.find("runs", row["run"])) for row in found]
    return " + ".join(f"{_mean(column):,.0f}" for column in zip(*parts, strict=True))


def _goal(goals: Json, reached: Json, rows: dict[str, Json]) -> str:
    words = {"fd": "≤ {:.1f} × floor", "recall": "recall ≥ {:.2f}", "bits": "≤ {:.2f} bits/dim"}
    parts = []
    for key, goal in goals.items():
        if key == "fd_of":
            words[key] = f"≤ {goal['times']} × {rows.get(goal['row'], {}).get('title', goal['row'])}, for every seed"
        if key not in reached:
            verdict = "not measured"
        elif key == "fd_of":
            ratios = ", ".join(f"{ratio:.2f}" for ratio in reached[key])
            verdict = f"{'yes' if max(reached[key]) <= goal['times'] else 'no'} ({ratios})"
        else:
            verdict = "yes" if (reached[key] >= goal if key == "recall" else reached[key] <= goal) else "no"
        parts.append(f"{words[key].format(goal)}: {verdict}")
    return "; ".join(parts) or NONE


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: list[str]) -> int:
    """Run the command; return 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN, help="a study with goals; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="key=value, for every stage")
    parser.add_argument("--seeds", help="for example 0,1,2")
    parser.add_argument("--only", action="append", help="a row of the plan; repeatable")
    parser.add_argument("--trained", nargs="+", metavar="RUN", help="measure these, one for each seed; train none")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--dry-run", action="store_true", help="print the pipeline's stages")
    asked = parser.parse_args(arguments)
    try:
        plan = Plan.load(asked.plan)
        if asked.seeds:
            plan = replace(plan, seeds=[int(seed) for seed in asked.seeds.split(",")])
        if asked.only:
            plan = plan.select_rows(asked.only)
        overrides = assignments(asked.sets)
        if overrides:
            plan = without_goals(plan)
        pipeline = measuring(plan, asked.trained) if asked.trained else plan.pipeline("results")
        stages = graph.load(pipeline, asked.plan.name, overrides).stages
        if asked.dry_run:
            print("\n".join(f"{stage.name:<24} {stage.job:<9} {', '.join(stage.needs)}" for stage in stages))
            return 0
        store = Store()
        found, problems = execute(plan, pipeline, overrides, store)
        command = MADE_BY.get(tuple(arguments)) or " ".join(["python benchmarks/results.py", *arguments])
        write(plan, found, problems, command, store, asked.out)
    except GenflowError as error:
        return console.fail(error, verbose=False)
    print(f"results  {asked.out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
