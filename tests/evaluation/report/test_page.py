"""The report: a self-contained file with every run; its sentences claim no more than the numbers support."""

import contextlib
import copy
import json
import re
import shlex

import pytest
from PIL import Image
from support import browser
from support.trained_run import trained_run

from genflow import runs
from genflow.errors import UsageError
from genflow.evaluation import evaluate
from genflow.evaluation.features import classifier
from genflow.evaluation.report import charts, dots, gallery, html, page, reproduce, table
from genflow.evaluation.report.charts import Point, Series
from genflow.evaluation.report.dots import Dot
from genflow.evaluation.report.summary import verdict
from genflow.recipe.compose import assignments, compose
from genflow.recipe.schema import Evaluate
from genflow.specs import DataSpec

OPTIONS = Evaluate(samples=60, sweep_samples=30, steps=(1, 4), likelihood=8, bootstrap=3)


@pytest.fixture
def measured(store, prepared, monkeypatch):
    """Documents of a VAE and of flow matching on digits, each trained for a few steps."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 5)
    monkeypatch.setattr(classifier, "MIN_STEPS", 5)
    data = prepared("digits", val=0.2)
    made = [trained_run(store, data, "vae"), trained_run(store, data, "flow_matching", name="flow-b")]
    return [evaluate.evaluate(store, run, data.artifact, OPTIONS, lambda event, **fields: None) for run in made]


def row(name: str, fd: float, **changes):
    """A document as `evaluate` returns it, with intervals of 10 %."""
    def metric(value, floor):
        return {"value": value, "low": 0.9 * value, "high": 1.1 * value, "n": 500, "features": "f", "floor": floor}

    found = {
        "name": name, "run": f"{name}-1", "title": name.upper(), "nfe": 1, "modes": None, "likelihood": None,
        "metrics": {"fd": metric(fd, 1.0), **{k: metric(0.8, 0.8) for k in ("recall", "coverage", "agreement")}},
        "speed": {"ms_batch_64": 2.0, "ms_batch_1": 3.0},
        "sweep": [{"steps": None, "nfe": 1, "own": True, "fd": metric(fd, 1.0)}],
    }  # fmt: skip
    return {**found, **changes}


def test_the_page_needs_nothing_outside_itself(store, measured):
    """The page has no URL, storage or request; pictures are embedded; it is below 10 MB and names every run."""
    artifact = page.build(store, measured)
    text = artifact.file("report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text))
    assert not re.search(r"\b(?:src|href)=\"(?!data:)", text)
    assert not re.search(r"localStorage|fetch\(|XMLHttpRequest|@import|url\(", text)
    assert len(text) < 10_000_000
    for document in measured:
        assert text.count(document["name"]) > 5
    # 10 samples and a whole grid of real data and of each run; a path, two interpolations, two nearest pictures
    assert text.count("<img ") == text.count('alt="') == 3 * (10 + 1) + 5
    plots = text.count("<svg class=\"chart\"") + text.count("<svg class=\"dots\"")
    assert plots == text.count('role="img" aria-label="') > 10
    assert measured[0]["features"]["name"] in text
    assert "published" in text


def test_the_page_is_short_and_opens_with_pictures(store, measured):
    """Samples come first, then at most three sentences, then plots; tables of numbers are details."""
    text = page.render(store, measured)
    places = [text.index(part) for part in ('class="gallery"', 'class="verdict"', 'class="panels"', "<table")]
    assert places == sorted(places)
    verdict = re.search(r'<section class="verdict".*?</section>', text, re.S)[0]
    assert verdict.partition("<details")[0].count("<p>") <= 3
    assert text[: text.index("<table")].count("<details") > text[: text.index("<table")].count("</details")
    program = browser.find_browser()
    if program is None:
        pytest.skip("no Chromium")
    file = store.root / "report.html"
    file.write_text(text, encoding="utf-8")
    with browser.page(program, file.as_uri()) as tab:
        tab.until("document.readyState == 'complete'")
        for width, most in ((1280, 3000), (390, 5600)):
            tab.size(width, 1000)
            assert tab.run("document.documentElement.scrollWidth") <= width
            assert tab.run("document.documentElement.scrollHeight") <= most
        tab.click(".tiles")
        tab.until("document.querySelector('dialog[open] img').naturalWidth > 0")
        tab.key("Escape", 27)
        assert tab.run("document.querySelector('dialog[open]')") is None
        assert not tab.errors


def test_the_poster_has_the_size_of_a_post(store, measured):
    """A PNG of 1200 x 675 pixels, whose rows of samples are not blank."""
    artifact = page.build(store, measured)
    poster = Image.open(artifact.file("poster.png"))
    assert poster.size == (1200, 675)
    assert poster.crop((700, 100, 1160, 560)).convert("L").getextrema() == (0, 255)


@pytest.mark.parametrize("count", range(1, 40))
def test_no_picture_is_alone_on_a_line(count):
    """Also the fifth of five is not; a single picture has the only line."""
    for most in (3, 4, 5):
        columns = html.columns(count, most)
        assert 1 <= columns <= most + 2
        assert count == 1 or columns == 1 or count % columns != 1


def test_the_same_places_of_a_grid_are_shown():
    """A row shows every class once, or several samples of few classes, with the name of each."""
    facts = DataSpec((1, 8, 8), 17, class_names=tuple("abcdefghij"))
    places = gallery.chosen(80, 10)
    assert gallery.captions(places, facts) == list("abcdefghij")
    two = DataSpec((1, 8, 8), 17, class_names=("x", "y"))
    assert gallery.captions(gallery.chosen(16, 2), two) == list("xxxxxyyyyy")
    assert gallery.chosen(64, 0) == list(range(10))


def test_a_dot_plot_shows_what_is_missing_and_what_is_open():
    """A row without a value has its text; an open interval ends in an arrow; real data is a line."""
    none = Dot("B", 1, None, None, None, "none")
    rows = [Dot("A", 0, 3.0, 2.0, None, "3+"), none, Dot("C", 2, 40.0, 30.0, 50.0, "40")]
    drawn = dots.plot(rows, "steps", 1.0)
    assert drawn.count("<circle") == 2
    assert drawn.count("<path") == drawn.count('class="truth-line"') == 1
    assert ">none</text>" in drawn
    assert 'aria-label="steps; real data: 1. A: 3+. B: none. C: 40."' in drawn
    assert dots.plot([none], "steps") == ""


def test_the_report_is_the_same_for_the_same_evaluations(store, measured):
    """The address of a report does not depend on the order of runs."""
    assert page.address(measured) == page.address(measured[::-1])
    assert page.build(store, measured).id == page.address(measured)


def test_names_are_text(store, measured):
    """Names are escaped, so they cannot add markup to the page."""
    odd = [{**document, "name": "<script>alert(1)</script>"} for document in copy.deepcopy(measured)[:1]]
    assert "<script>alert" not in page.render(store, odd)


def test_different_features_are_not_compared(store, measured):
    """Distances with different features are different quantities."""
    other = {**measured[1], "features": {**measured[1]["features"], "name": "other@12345678"}}
    with pytest.raises(UsageError, match="features"):
        page.build(store, [measured[0], other])


def test_the_commands_make_the_runs_again(store, measured):
    """The options of `train` turn the family's preset into the run's own recipe."""
    lines = [shlex.split(line) for line in reproduce.commands(store, measured)]
    assert [line[1] for line in lines] == ["prepare", "train", "train", "compare"]
    for document, line in zip(measured, lines[1:3], strict=True):
        sets = [line[i + 1] for i, word in enumerate(line) if word == "--set"]
        named = {"name": line[line.index("--name") + 1]} if "--name" in line else {}
        recipe = compose(line[2], {"data": {"name": line[line.index("--data") + 1]}}, assignments(sets), named)
        assert runs.plan(store, recipe).id == document["run"]


def test_a_run_that_starts_from_another_is_made_after_it(store, measured):
    """The command of the source comes first; --init names it, and settings that follow from it are not repeated."""
    first = store.find("runs", measured[1]["run"])
    recipe = compose("consistency", {"init": first.id, "data": {"name": measured[1]["dataset"]}})
    run = runs.plan(store, recipe)
    runs.create_folder(store, run)
    meta = {"family": "consistency", "init": first.id}
    store.finalize("runs", run.id, name=run.name, parents=[first.id], meta=meta)
    lines = reproduce.commands(store, [{**measured[1], "run": run.id}])
    assert [line.split()[1:3] for line in lines[1:3]] == [["train", "flow_matching"], ["train", "consistency"]]
    assert lines[2].endswith(f"--init {first.name}")


def test_differences_are_the_changed_keys_alone(store, measured):
    """A key that only one run has is listed for that run; a key with equal values is not listed."""
    recipes = [reproduce.recipe_of(store.find("runs", document["run"])) for document in measured]
    keys = dict(reproduce.differences(recipes))
    assert keys["family.kind"] == ["vae", "flow_matching"]
    assert "train.lr" not in keys
    assert any(setting.startswith("family.beta=") for setting in reproduce.unique_settings(recipes)[0])


def test_clear_differences_are_said_and_others_are_not():
    """With a significant difference there is a best run; without one there is none."""
    assert verdict([row("a", 5.0), row("b", 2.0)])[0].startswith("b has the best samples")
    assert "No run is significantly better" in verdict([row("a", 2.1), row("b", 2.0)])[0]
    assert "no significant difference from real data" in verdict([row("a", 1.02)])[0]


def test_an_autoencoder_is_the_limit_and_no_competitor():
    """Its fd is that of reconstructions: another run has the best samples, and is highlighted."""
    limit = {"fd": {"value": 0.6, "low": 0.5, "high": 0.7}, "psnr": {"value": 30.0, "low": 29.0, "high": 31.0}}
    autoencoder = row("ae", 0.6, reconstructs=True, reconstruction=limit)
    other, best = row("b", 2.0, reconstruction=limit), row("c", 1.5, reconstruction=limit)
    first, second, *_ = verdict([autoencoder, other, best])
    assert first.startswith("c has the best samples: fd 1.50")
    assert second == (
        "Reconstructions by the autoencoder have fd 0.60 and a PSNR of 30.0 dB: a perfect model of the latents of c "
        "and b has this fd."
    )
    assert verdict([autoencoder]) == ["Reconstructions by the autoencoder have fd 0.60 and a PSNR of 30.0 dB."]
    assert page._best([autoencoder, other, best])["fd"] == {best["run"]}


def with_neighbours(name: str, precision: float, recall: float) -> dict:
    """A row with these numbers, which are certain to 0.02; real data has 0.8 of everything."""
    found = row(name, 2.0)
    values = {"precision": precision, "recall": recall, "density": precision, "coverage": 0.8}
    for metric, value in values.items():
        found["metrics"][metric] = {"value": value, "low": value - 0.02, "high": value + 0.02, "floor": 0.8}
    return found


def test_no_neighbourhood_metric_praises_scraps():
    """Precision beyond that of real data, or without variety, is no merit: neither a mark nor `best:precision`."""
    blank, scraps = with_neighbours("blank", 1.0, 0.6), with_neighbours("scraps", 0.7, 0.1)
    honest = with_neighbours("honest", 0.6, 0.7)
    marked = page._best([blank, scraps, honest])
    for metric in ("precision", "density"):
        assert marked[metric] == {honest["run"]}
        assert table.best([blank, scraps, honest], metric) == honest["run"]
    assert marked["recall"] == {honest["run"]}
    assert "precision" not in page._best([blank, scraps])
    assert table.best([blank, scraps], "precision") == blank["run"]


def test_the_sweep_never_calls_its_distance_fd(store, measured):
    """The points of a sweep have 30 samples and the measurements 60: the page tells them apart."""
    text = page.render(store, measured)
    curves = text[text.index("<h2>Quality against cost") :]
    assert "fd of 30 samples ↓" in curves
    assert not re.search(r"\bfd ↓|: fd [\d.]", curves[: curves.index("<details")])


def test_problems_of_a_model_are_reported():
    """Lost variety, ignored labels and a likelihood below the simplest baseline are each reported."""
    bad = row("a", 9.0)
    for name in ("recall", "agreement"):
        bad["metrics"][name] |= {"value": 0.1, "low": 0.05, "high": 0.2}
    bars = {"levels": 4.0, "independent": 2.5}
    bad["likelihood"] = {"value": 3.0, "low": 2.9, "high": 3.1, "unit": "bits/dim", "kind": "lower-bound", "bars": bars}
    said = " ".join(verdict([bad, row("b", 2.0)]))
    assert "missing from the samples of a (recall 0.10 instead of 0.80" in said
    assert "show the requested class: a 10 %; real data 80 %" in said
    assert "worse than a model of independent pixels (2.50)" in said


def test_a_likelihood_beyond_the_truth_is_an_error_of_the_estimate():
    """On average, no model can assign data a higher density than the true density."""
    found = {"value": -4.0, "low": -4.1, "high": -3.9, "unit": "nats", "kind": "ode-estimate", "bars": {"truth": -2.9}}
    assert "below the true density (-2.90)" in verdict([row("a", 2.0, likelihood=found)])[-1]


def test_the_table_has_a_cell_a_column(measured):
    """Each row of the table has one cell per column, and the best run is first."""
    lines = table.rows({"rows": measured})
    assert {len(line) for line in lines} == {len(table.columns({"rows": measured}))}
    ranked = sorted(measured, key=lambda document: document["metrics"]["fd"]["value"])
    assert [line[0] for line in lines] == [document["name"] for document in ranked]


def test_the_best_run_is_found_by_metric(store, measured):
    """best:fd is the run with the smallest fd; an unknown metric is an error that suggests a similar name."""
    smallest = min(measured, key=lambda document: document["metrics"]["fd"]["value"])
    assert table.best_run(store, "fd")[0].id == smallest["run"]
    assert table.best_run(store, "ms")[0].id == min(measured, key=lambda d: d["speed"]["ms_batch_64"])["run"]
    with pytest.raises(UsageError, match="did you mean recall"):
        table.best_run(store, "recal")


def test_the_best_run_is_one_of_the_comparable_runs(store, prepared, measured):
    """Only runs on the data of the newest evaluation are considered, however large their distance."""
    data = prepared("ring8", samples=400, val=0.3)
    run = trained_run(store, data, "vae", steps=1)
    evaluate.evaluate(store, run, data.artifact, OPTIONS, lambda event, **fields: None)
    assert table.best_run(store, "fd")[0].id == run.id


def test_the_best_run_is_one_of_those_measured_on_the_same_number_of_samples(store):
    """Fewer samples change fd, so the number that most runs have counts, and a line names the others."""

    def write(name, fd, samples):
        with contextlib.suppress(OSError), store.stage("runs", f"{name}-1", name=name) as staged:
            staged.commit()
        own = {"fingerprint": "f", "features": {"name": "f"}, "samples": samples, "sample": {}}
        with store.stage("evaluations", f"{name}-{samples}", name=name) as staged:
            text = json.dumps({**row(name, fd), **own, "evaluation": f"{name}-{samples}"})
            (staged.path / "metrics.json").write_text(text, encoding="utf-8")
            staged.commit()

    write("a", 3.0, 1000)
    write("b", 2.0, 1000)
    assert table.best_run(store, "fd") == (store.find("runs", "b"), "")
    write("c", 1.0, 5000)
    found, remark = table.best_run(store, "fd")
    assert found.name == "b"
    assert "best:fd ranks the 2 runs that were measured on 1,000 samples, not c-1 (5,000)" in remark
    assert table.best_run(store, "ms")[1] == ""  # a time does not depend on them
    write("c", 4.0, 1000)  # its fd is that of 5,000 samples wherever it is shown, and this one is ranked
    assert table.best_run(store, "fd") == (store.find("runs", "b"), "")
    write("a", 0.5, 5000)
    assert table.best_run(store, "fd")[0].name == "b"


def test_marks_are_drawn_at_their_values():
    """On a logarithmic axis equal ratios have equal distances; the floor is one horizontal line."""
    points = [Point(x, 2.0, 2.0, 2.0) for x in (1, 10, 100)]
    drawn = charts.chart([Series("a", 0, points)], x_label="x", y_label="y", alt="words", log_x=True, floor=1.0)
    places = [float(x) for x in re.findall(r'<circle [^>]*cx="([\d.]+)"', drawn)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert 'aria-label="words"' in drawn
    assert drawn.count('class="floor"') == 1


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-2.0, 3.0], [1e-9, 1e9]])
def test_any_numbers_can_be_drawn(values):
    """Equal, negative and very different values give valid coordinates."""
    points = [Point(i + 1, v, v, v) for i, v in enumerate(values)]
    drawn = charts.chart([Series("a", 1, points)], x_label="x", y_label="y", alt="a", from_zero=min(values) >= 0)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_stacks_that_lack_modes_are_compared_with_real_ones(store, measured):
    """Captured modes are compared with the ceiling, not with all 1,000 modes; the page shows the ceiling."""
    kl = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 2500, "floor": 0.27}
    modes = {"captured": 714, "of": 1000, "interval": [683.0, 745.0], "ceiling": 905, "kl": kl}
    one, other = ({**copy.deepcopy(document), "modes": modes} for document in measured)
    other["modes"] = {**modes, "captured": 890, "interval": [870.0, 910.0]}
    said = " ".join(verdict([one, other]))
    assert said.count("714 of 1000 modes instead of 905") == 1
    assert "890" not in said
    assert "<td>905</td>" in page.render(store, [one, other])


def test_the_verdict_says_whether_prompts_are_followed():
    """For runs of captions only: the share of samples whose caption is found, with real data and chance."""
    def share(value, floor):
        return {"value": value, "low": value, "high": value, "n": 500, "features": "j", "floor": floor, "chance": 0.01}

    own = row("words", 2.0)
    own["metrics"] |= {"r_precision": share(0.94, 0.99), "r_precision_unseen": share(0.89, 1.0)}
    text = " ".join(verdict([own, row("classes", 1.0)]))
    assert "own caption fits best among 100: words 94 % (captions that no training row has: 89 %)" in text
    assert "real data 99 %, chance 1 %" in text
    assert "caption" not in " ".join(verdict([row("classes", 1.0)]))
    own["memorization"] = {"copies": share(1.0, 0.01)}
    own["metrics"]["copies_unseen"] = share(0.02, 0.01)
    text = " ".join(verdict([own]))
    assert "words 100.0 % (held-out pictures 1.0 %; samples of unseen captions 2.0 %)" in text
