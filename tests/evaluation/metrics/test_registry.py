"""The folder of metrics is their registry."""

import subprocess
import sys

import pytest
from support import ROOT

from genflow.evaluation import metrics
from genflow.evaluation.metrics.base import Metric, Number
from genflow.evaluation.report import table
from genflow.recipe.schema import Evaluate
from genflow.system import source_hash
from genflow.tuning import metrics as tuned


def test_every_file_declares_one_metric() -> None:
    """Each file declares `METRIC`; the orders are unique and below the default of 100."""
    assert all(isinstance(metric, Metric) for metric in metrics.every())
    assert len(metrics.every()) == len(metrics.kinds())
    orders = [metric.order for metric in metrics.every()]
    assert len(set(orders)) == len(orders)
    assert max(orders) < 100


def test_numbers_have_names_of_their_own() -> None:
    """No two numbers have the same name."""
    every = [number.name for metric in metrics.every() for number in metric.numbers]
    assert len(set(every)) == len(every)
    assert not set(every) & set(metrics.COSTS)


def test_the_metrics_of_a_search() -> None:
    """The names and their order, as help texts and messages list them."""
    assert " ".join(tuned.names()) == (
        "fd kid precision recall density coverage agreement r_precision r_precision_hard r_precision_unseen "
        "r_precision_unseen_hard bits_per_dim psnr ssim reconstruction_fd straightness "
        "nfe ms ms_alone loss"
    )


def test_the_table_has_these_columns() -> None:
    """The titles of the columns of the command line."""
    measured = {"metrics": {}, "likelihood": None, "reconstruction": None}
    assert table.columns({"rows": [measured]}) == [
        "run", "family", "fd (95 %)", "× floor", "nfe", "P / R", "bits/dim", "ms/img", "img/s train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("fd", True), ("recall", False), ("bits_per_dim", True), ("copies", True), ("ms", True), ("unknown", False)],
)
def test_whether_smaller_is_better(name: str, smaller: bool) -> None:
    """As the file of the metric declares; smaller costs are better; False for an unknown name."""
    assert metrics.smaller_is_better(name) == smaller


def test_a_number_is_found_by_its_path() -> None:
    """A number is an entry of `metrics` or of a section; None if the document lacks it."""
    row = {"metrics": {"fd": {"value": 1}}, "memorization": None, "likelihood": {"value": 2}}
    assert metrics.numbers()["fd"].get(row) == {"value": 1}
    assert metrics.numbers()["bits_per_dim"].get(row) == {"value": 2}
    assert metrics.numbers()["copies"].get(row) is None
    assert Number("new", better="larger").get(row) is None


def test_every_metric_decides_the_address_of_an_evaluation() -> None:
    """The files of metrics are hashed, and imports inside functions are followed."""
    found = source_hash.imported(*metrics.files())
    assert set(metrics.files()) <= set(found)
    assert {"genflow/evaluation/features/classifier.py", "genflow/data/sources/densities.py"} <= set(found)


def test_classification_is_measured_on_request(prepared) -> None:
    """Only for pictures with labels, and only if the option is set."""
    (metric,) = (m for m in metrics.every() if [n.name for n in m.numbers] == ["classification"])
    digits, points = prepared("digits"), prepared("ring8", samples=100)
    assert metric.applies(digits, Evaluate(classification=True))
    assert not metric.applies(digits, Evaluate())
    assert not metric.applies(points, Evaluate(classification=True))


def test_tables_import_nothing_slow() -> None:
    """Reading the declarations of all metrics imports no torch, scipy, pyarrow, pydantic or sklearn."""
    script = "import sys; from genflow.evaluation.report import table; table.columns({'rows': [{}]})"
    script += "; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert {"torch", "scipy", "pyarrow", "pydantic", "sklearn"} & set(done.stdout.split()) == set()
