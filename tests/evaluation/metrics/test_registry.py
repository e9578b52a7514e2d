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
    """By the name `METRIC`, in an order that no two share, before that of a metric which names none."""
    assert all(isinstance(metric, Metric) for metric in metrics.every())
    assert len(metrics.every()) == len(metrics.kinds())
    orders = [metric.order for metric in metrics.every()]
    assert len(set(orders)) == len(orders)
    assert max(orders) < 100


def test_numbers_have_names_of_their_own() -> None:
    """No two metrics give a number of one name."""
    every = [number.name for metric in metrics.every() for number in metric.numbers]
    assert len(set(every)) == len(every)
    assert not set(every) & set(metrics.COSTS)


def test_a_search_can_ask_for_these() -> None:
    """In this order, which help and messages show."""
    assert " ".join(tuned.names()) == (
        "fd kid precision recall density coverage agreement bits_per_dim straightness nfe ms ms_alone loss"
    )


def test_the_table_has_these_columns() -> None:
    """In this order."""
    assert table.columns() == [
        "run", "family", "fd (95 %)", "× floor", "nfe", "P / R", "bits/dim", "ms/img", "img/s train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("fd", True), ("recall", False), ("bits_per_dim", True), ("copies", True), ("ms", True), ("nobody's", False)],
)
def test_which_way_is_better(name: str, smaller: bool) -> None:
    """As its file says; costs are better small, and of a name that nothing measures the larger value is."""
    assert metrics.smaller_is_better(name) == smaller


def test_a_number_is_found_where_its_path_says() -> None:
    """Among the metrics, or in a section; None where the document has none."""
    row = {"metrics": {"fd": {"value": 1}}, "memorization": None, "likelihood": {"value": 2}}
    assert metrics.numbers()["fd"].get(row) == {"value": 1}
    assert metrics.numbers()["bits_per_dim"].get(row) == {"value": 2}
    assert metrics.numbers()["copies"].get(row) is None
    assert Number("new", better="larger").get(row) is None


def test_every_metric_decides_the_address_of_an_evaluation() -> None:
    """The files exist, and what they import inside functions is followed."""
    found = source_hash.imported(*metrics.files())
    assert set(metrics.files()) <= set(found)
    assert {"genflow/evaluation/features/classifier.py", "genflow/data/sources/densities.py"} <= set(found)


def test_classification_is_measured_where_it_is_asked_for(prepared) -> None:
    """Of pictures with labels, and not of points."""
    (metric,) = (m for m in metrics.every() if [n.name for n in m.numbers] == ["classification"])
    digits, points = prepared("digits"), prepared("ring8", samples=100)
    assert metric.applies(digits, Evaluate(classification=True))
    assert not metric.applies(digits, Evaluate())
    assert not metric.applies(points, Evaluate(classification=True))


def test_tables_import_nothing_slow() -> None:
    """`best:fd` and a table read the declarations of all metrics without torch, scipy or the data."""
    script = "import sys; from genflow.evaluation.report import table; table.columns(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "scipy", "pyarrow", "pydantic", "sklearn"} & set(done.stdout.split()) == set()
