"""`genflow runs`: the list with quality and time, its order, unfinished runs, and the headline of a run."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.commands import Command, in_this_process

from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.tracking.journal import Journal, journal_path


@pytest.fixture
def genflow(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Run a command in this process; return (exit code, standard output, standard error)."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    return in_this_process(monkeypatch, capsys)


def made(
    store: Store, run: str, fd: float | None, seconds: float = 90, times: int = 1, few: float | None = None
) -> None:
    """A finished run and, with an fd, its evaluations on 500 samples; the last one has this fd.

    The newest evaluations have 50 samples, and another way of sampling, and the fd `few`.
    """
    with store.stage("runs", run) as staged:
        (staged.path / "recipe.yaml").write_text("family: {kind: ddpm}\n", encoding="utf-8")
        staged.commit(parents=["d-1"], meta={"family": "ddpm", "dataset": "d-1", "steps": 1200, "seconds": seconds})
    found = [(fd + times - 1 - number, 500, {}) for number in range(times if fd is not None else 0)]
    found += [(few, 50, {}), (few, 900, {"steps": 2})] if few is not None else []
    for number, (value, samples, sample) in enumerate(found):
        likelihood = {"value": 2.5, "stderr": 0.01, "kind": "lower-bound", "unit": "bits/dim"}
        metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": samples, "floor": 0.5}
        document = {"run": run, "metrics": {"fd": metric}, "likelihood": likelihood, "samples": samples,
                    "sample": sample}  # fmt: skip
        with store.stage("evaluations", f"{run}-{number}") as staged:
            (staged.path / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
            staged.commit(parents=[run])


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_list_has_quality_and_time(genflow: Command, store: Store) -> None:
    """fd and × floor of the newest evaluation, bits/dim and minutes; a dash where there is none."""
    made(store, "a-1", 1.5, times=2)
    made(store, "b-2", None, seconds=6)
    code, out, _ = genflow("runs", "ls")
    head, _, first, second = lines(out)
    assert code == 0
    assert head == ["run", "family", "data", "fd", "×", "floor", "bits/dim", "min", "made"]
    assert first[:8] == ["a-1", "ddpm", "d-1", "1.50", "3.0", "≤", "2.500", "1.5"]
    assert second[:7] == ["b-2", "ddpm", "d-1", "—", "—", "—", "0.1"]


def test_a_run_has_one_fd(genflow: Command, store: Store) -> None:
    """A later evaluation with fewer samples, or with another way of sampling, does not change the fd of a run."""
    made(store, "a-1", 1.5, few=9.0)
    assert lines(genflow("runs", "ls")[1])[2][3:5] == ["1.50", "3.0"]
    assert "fd 1.50 (1.40 to 1.60, 500 samples)" in genflow("runs", "show", "a-1")[1]


def test_a_report_is_written_as_a_page_or_a_poster(genflow: Command, store: Store, tmp_path: Path) -> None:
    """Another suffix is refused before anything is measured, with both commands that work."""
    for command in ("compare", "report"):
        code, _, err = genflow(command, "a-1", "--out", str(tmp_path / "x.jpg"))
        assert code == 2
        assert "a report is written as .html, and its first screen as .png" in err
        assert f"fix: --out {tmp_path / 'x.png'}, or --out {tmp_path / 'x.html'}" in err


def test_columns_without_values_are_omitted(genflow: Command, store: Store) -> None:
    """Without an evaluation there is no column of fd."""
    made(store, "a-1", None)
    assert lines(genflow("runs", "ls")[1])[0] == ["run", "family", "data", "min", "made"]


def test_the_order_is_chosen(genflow: Command, store: Store) -> None:
    """--sort fd puts the smallest first and runs without fd last; an unknown order is a usage error."""
    for run, fd, seconds in (("a-1", 2.0, 10), ("b-2", None, 20), ("c-3", 1.0, 30)):
        made(store, run, fd, seconds)
    for sort, order in (("fd", "c-3 a-1 b-2"), ("made", "a-1 b-2 c-3"), ("minutes", "a-1 b-2 c-3")):
        assert [line[0] for line in lines(genflow("runs", "ls", "--sort", sort)[1])[2:]] == order.split()
    document = json.loads(genflow("runs", "ls", "--sort", "fd", "--json")[1])
    assert [run["fd"] for run in document["runs"]] == [1.0, 2.0, None]
    code, _, err = genflow("runs", "ls", "--sort", "fdd")
    assert code == 2
    assert "no such order (did you mean fd?)" in err


def test_a_running_run_shows_its_step_and_time(genflow: Command, store: Store) -> None:
    """Of a run that is trained now, the last step in its journal and the minutes since it began."""
    write_atomically(store.folder("runs", "r-1") / "recipe.yaml", "data: {name: d-1}\nfamily: {kind: vae}\n")
    with Journal(journal_path(store.root, "r-1")) as journal:
        journal.metrics(40, {"train/loss": 0.5})
    path = journal_path(store.root, "r-1")
    began = time.time_ns() // 1_000_000 - 90_000
    entries = [{**json.loads(line), "t": began} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    with store.lock("runs", "r-1"):
        row = lines(genflow("runs", "ls")[1])[2]
    assert row[:4] == ["r-1", "vae", "d-1", "1.5"]
    assert " ".join(row[4:]).startswith("training: process ")
    assert row[-2:] == ["step", "40"]
    assert "unfinished: run the same command to resume" in genflow("runs", "ls")[1]


def test_a_run_has_a_headline(genflow: Command, store: Store) -> None:
    """`runs show` says fd with its interval and what real pictures reach, bits/dim, steps and minutes."""
    made(store, "a-1", 1.5)
    headline = "fd 1.50 (1.40 to 1.60, 500 samples), 3.0 times that of real pictures · ≤ 2.500 ± 0.010 bits/dim"
    assert f"headline  {headline} · 1,200 steps · 1.5 min\n" in genflow("runs", "show", "a-1")[1]
    made(store, "b-2", None)
    assert json.loads(genflow("runs", "show", "b-2", "--json")[1])["headline"].startswith("not measured yet · 1,200")


@pytest.mark.parametrize("group", ["runs", "data", "endpoints"])
def test_a_group_alone_lists(genflow: Command, group: str) -> None:
    """`genflow runs` prints what `genflow runs ls` prints; an unknown command of the group is an error."""
    assert genflow(group) == genflow(group, "ls")
    assert genflow(group, "--json") == genflow(group, "ls", "--json")
    assert genflow(group, "-h")[1] == genflow(group, "--help")[1]
    code, _, err = genflow(group, "lss")
    assert code == 2
    assert "lss" in err


def test_the_page_of_a_store(genflow: Command, store: Store, prepared: Any, tmp_path: Path) -> None:
    """Every run with its samples, values to sort by and a link to its report; every dataset with a thumbnail."""
    prepared("digits")
    made(store, "a-1", 1.5)
    made(store, "b-2", None)
    folder = store.folder("runs", "r-3")
    write_atomically(folder / "recipe.yaml", "data: {name: d-1}\nfamily: {kind: vae}\n")
    (folder / "samples").mkdir()
    Image.new("RGB", (500, 400)).save(folder / "samples/10.png")
    with store.stage("reports", "d-9") as staged:
        (staged.path / "report.html").write_text("<html>", encoding="utf-8")
        staged.commit(parents=["a-1"], meta={"runs": ["a-1"]})
    code, out, _ = genflow("runs", "ls", "-o", str(tmp_path / "page.html"))
    assert code == 0
    assert "a-1" in out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    links = re.findall('href="([^"]+)"', page)
    assert len(links) == 2
    assert all((tmp_path / link).is_file() for link in links)
    assert 'data-value="1.5">1.50<' in page
    assert page.count('src="data:image/') == 2
    assert "1,797 rows · 1×8×8 · 10 classes" in page
    assert "http" not in page
    code, _, err = genflow("runs", "ls", "-o", "/no/such/folder/page.html")
    assert code == 2
    assert "mkdir -p /no/such/folder" in err
