"""A study: the same runs for several seeds, and their measurements, as one pipeline.

    seeds: [0, 1, 2]
    budget: 0.5                      # CPU minutes of a training with share 1; omitted if runs set their own
    data: {data: digits, grid: {source: grid25_unlabelled}}       # a dataset in the store, or a section to prepare one
    measured: {samples: 2000, steps: [1, 2, 4]}                   # the section `evaluate` of every row
    runs:
      flow: {preset: flow_matching, share: 1}
      few: {preset: consistency, init: flow, share: 0.4}
    rows:
      flow_10: {title: "Flow matching", run: flow, sample: {steps: 10}}
    trials:                                                       # repeat every run of `of` with other settings
      slow: {of: [flow], lr_times: 0.333, seeds: 1, measured: {steps: []}}
      grid: {of: [flow], data: grid, share: 0.25}

A run becomes a stage `<run>-s<seed>`; a row becomes a stage `<row>-m<seed>`. A trial adds a run and a row, both named
`<run>-<trial>`.
The tables (`genflow tables`) and the page of results (`make results`) are studies.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from genflow.errors import UsageError, nearest
from genflow.pipeline import latents
from genflow.recipe.compose import compose
from genflow.recipe.files import read
from genflow.system.documents import Json

NO_STEP_LIMIT = 1_000_000_000  # steps: the CPU time limits the training
RUN_REFERENCES = ("init", "pairs", "latents", "text", "autoencoder", "run")  # keys of a run that name another run
STUDY_KEYS = ("share", "lr_times", "seeds")  # keys of a run that configure the study and are not copied into its stage


@dataclass(frozen=True, kw_only=True)
class Study:
    """The trainings and measurements of a study.

    Args:
        seeds: each run is trained once per seed.
        data: datasets by stage name: an artifact's name, or the section of a prepare stage.
        measured: the `evaluate` section of every row.
        runs: train, reflow and encode stages by name, without data and seed. `share` is a run's fraction of the budget,
            `lr_times` multiplies the learning rate of its preset, and `seeds` is the number of seeds that it uses.
        rows: {title, run, sample, measured} by name.
        budget: CPU minutes of a training with `share` 1; None: each run sets its own limit.
        trials: {of: [run], ...changed settings} by name.
        latents: the latents that every run on the dataset `data` learns, by id or name; `auto`: of an autoencoder that
            is trained once for all seeds; empty: its pictures. Runs on other datasets learn these.
    """

    seeds: list[int]
    data: dict[str, Any] = field(default_factory=dict)
    measured: Json = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    rows: dict[str, Json] = field(default_factory=dict)
    budget: float | None = None
    trials: dict[str, Json] = field(default_factory=dict)
    latents: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a study from a file.

        Raises:
            UsageError: the file is unreadable, or has an unknown key.
        """
        document = read(path)
        known = list(cls.__dataclass_fields__)
        for key in document:
            if key not in known:
                raise UsageError(f"{path}: unknown key {key}{nearest(key, known)}")
        return cls(**document)

    def select_rows(self, names: Iterable[str]) -> Self:
        """The study with only these rows and the runs that they need, without trials.

        Raises:
            UsageError: a row does not exist.
        """
        names = list(names)
        for name in names:
            if name not in self.rows:
                raise UsageError(f"no row {name}{nearest(name, list(self.rows))}")
        rows = {name: row for name, row in self.rows.items() if name in names}
        needed = [row["run"] for row in rows.values()]
        for name in needed:  # the list grows during iteration by the runs that a run refers to
            needed += [self.runs[name][key] for key in RUN_REFERENCES if key in self.runs[name]]
        return replace(self, runs={n: r for n, r in self.runs.items() if n in needed}, rows=rows, trials={})

    def with_trials(self) -> Self:
        """The study with its trials expanded to runs and rows."""
        runs, rows = dict(self.runs), dict(self.rows)
        for trial, described in self.trials.items():
            own = {key: value for key, value in described.items() if key not in ("of", "measured")}
            for run in described["of"]:
                name = f"{run}-{trial}"
                runs[name] = {**self.runs[run], **own}
                row = {"title": name, "run": name, "measured": described.get("measured", {})}
                rows[name] = {**row, "sample": self.rows[self.first_row(run)].get("sample", {})}
        return replace(self, runs=runs, rows=rows, trials={})

    def pipeline(self, name: str) -> Json:
        """The study as a pipeline document: a stage for every run and seed, and for every row and seed."""
        study = self.with_trials()
        stages: dict[str, Json] = {
            key: {"job": "prepare", "data": section} for key, section in self.data.items() if isinstance(section, dict)
        }
        if self.latents == "auto":
            stages |= latents.stages(self._dataset("data"))
        for seed in self.seeds:
            for run in study.runs:
                if seed in study.seeds_of(run):
                    stages[f"{run}-s{seed}"] = study._training_stage(run, seed)
            for row in study.rows:
                if seed in study.seeds_of(study.rows[row]["run"]):
                    stages[f"{row}-m{seed}"] = study._evaluation_stage(row, seed)
        return {"name": name, "stages": stages}

    def first_row(self, run: str) -> str:
        """The first row of a run: it measures the likelihood, and the run's trials use its sampling options."""
        return next(name for name, row in self.rows.items() if row["run"] == run)

    def seeds_of(self, run: str) -> list[int]:
        """The seeds that a run uses."""
        return self.seeds[: self.runs[run].get("seeds", len(self.seeds))]

    def cpu_minutes(self, run: str) -> float | None:
        """The limit of a run's training in CPU minutes; None if the run sets its own."""
        return None if self.budget is None else self.budget * self.runs[run].get("share", 1)

    def _training_stage(self, name: str, seed: int) -> Json:
        run = self.runs[name]
        stage = {key: value for key, value in run.items() if key not in STUDY_KEYS}
        stage |= {key: f"{run[key]}-s{seed}" for key in RUN_REFERENCES if key in run}
        if run.get("job") == "reflow":
            return {**stage, "reflow": {**run.get("reflow", {}), "seed": seed}}
        data = self._dataset(run.get("data", "data"))
        if run.get("job") in ("encode", "encode_text"):
            return {**stage, "name": f"{name}-s{seed}", "data": data}
        train: Json = {"steps": NO_STEP_LIMIT, **run.get("train", {}), "seed": seed}
        if (minutes := self.cpu_minutes(name)) is not None:
            train["cpu_minutes"] = minutes
        if self.latents and run.get("data", "data") == "data":
            stage = {"latents": "latents" if self.latents == "auto" else self.latents, **stage}
        if factor := run.get("lr_times"):
            own = {key: run.get(key, {}) for key in ("net", "train")} | {"data": {"latents": stage.get("latents", "")}}
            train["lr"] = round(compose(run["preset"], own).train.lr * factor, 12)
        return {"job": "train", "name": f"{name}-s{seed}", **stage, "data": data, "train": train}

    def _dataset(self, key: str) -> str:
        """The stage that prepares a dataset, or the dataset in the store."""
        named = self.data.get(key, key)
        return key if isinstance(named, dict) else str(named)

    def _evaluation_stage(self, name: str, seed: int) -> Json:
        row = self.rows[name]
        once = {} if self.first_row(row["run"]) == name else {"likelihood": 0}  # it does not depend on the sampler
        return {
            "job": "evaluate",
            "runs": [f"{row['run']}-s{seed}"],
            "sample": row.get("sample", {}),
            "evaluate": {**self.measured, **row.get("measured", {}), "seed": seed, **once},
        }
