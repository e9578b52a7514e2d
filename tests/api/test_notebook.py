"""The Python API: what a notebook shows, what NumPy, Pillow, torch and Arrow read, and the errors."""

import importlib
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import ROOT
from support.trained_run import trained_run
from torch.utils.data import DataLoader

import genflow
from benchmarks import families
from genflow.api import Data, Pictures, Run, Table
from genflow.cli import sample as command
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data as Section
from genflow.storage.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Digits, a run of flow matching, and one of a VAE, which encodes."""
    store = Store(tmp_path_factory.mktemp("notebook") / "store")
    artifact, _ = prepare(store, Section(source="digits"), in_process, lambda event, **fields: None)
    for kind in ("flow_matching", "vae"):
        trained_run(store, Dataset.open(artifact), kind, steps=10)
    return store


@pytest.fixture
def flow(store: Store) -> Run:
    return genflow.load("flow_matching-digits", store=store)


@pytest.fixture
def vae(store: Store) -> Run:
    return genflow.load("vae-digits", store=store.url)


@pytest.fixture
def digits(store: Store) -> Data:
    return genflow.data("digits", store=store)


def is_png(data: bytes | None) -> bool:
    return data is not None and Image.open(io.BytesIO(data)).format == "PNG"


def test_functions_are_found_on_the_package() -> None:
    """`import genflow` has every function that the stub declares; `runs` and `data` are modules, too."""
    stub = (ROOT / "genflow/__init__.pyi").read_text(encoding="utf-8")
    for name in genflow.__all__:
        assert f" as {name}\n" in stub
        assert name in dir(genflow)
        assert hasattr(genflow, name)
    from genflow import data, runs

    assert callable(runs.plan)  # the module of the library
    assert callable(runs)
    assert data.__name__ == "genflow.data"
    assert pickle.loads(pickle.dumps(runs)) is importlib.import_module("genflow.runs")
    with pytest.raises(AttributeError, match="nothing"):
        genflow.nothing  # noqa: B018


def test_a_module_is_callable_however_it_was_imported() -> None:
    """Before and after the library has imported its own module of that name."""
    script = "import genflow; a = genflow.data; import genflow.data.shards; print(a is genflow.data, callable(a))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert done.stdout == "True True\n"


def test_samples_are_those_of_the_command(
    flow: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run.sample(n, seed=s)` and `genflow sample -n n --seed s` draw the same bytes."""
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    command.sample(flow.id, n=12, seed=5, out=tmp_path / "a.npy", json=True)
    drawn = flow.sample(12, seed=5)
    assert np.array_equal(np.load(tmp_path / "a.npy").transpose(0, 2, 3, 1), np.asarray(drawn))
    assert drawn.seeds == list(range(5, 17))
    assert drawn.classes == [str(i % 10) for i in range(12)]
    assert np.array_equal(np.load(drawn.save(tmp_path / "b.npy")), np.load(tmp_path / "a.npy"))


def test_samples_are_pictures_arrays_and_tensors(flow: Run) -> None:
    """A grid as PNG, an array of 0..255, tensors of a net, and images of Pillow; parts of them are samples."""
    drawn = flow.sample(6, label=3)
    assert is_png(drawn._repr_png_())
    assert np.asarray(drawn).shape == (6, 8, 8, 1)
    assert np.asarray(drawn, dtype=np.float32).dtype == np.float32
    assert drawn.torch().shape == (6, 1, 8, 8)
    assert [image.size for image in drawn] == [(8, 8)] * 6
    assert np.array_equal(np.asarray(drawn[1]), np.asarray(drawn)[1, :, :, 0])
    assert (len(drawn[2:4]), drawn[2:4].seeds, drawn[-1].mode) == (2, [2, 3], "L")
    assert drawn[np.array([True, False] * 3)].seeds == [0, 2, 4]
    assert "6 pictures, 8×8×1" in repr(drawn)
    with pytest.raises(IndexError):
        drawn[6]


def test_labels_are_names_numbers_or_lists(flow: Run) -> None:
    """A list has one label of each sample; wrong labels and options are the errors of the command."""
    assert flow.sample(2, label=7).classes == ["7", "7"]
    assert flow.sample(label=["1", 2, "none"]).classes == ["1", "2", None]
    assert flow.sample(2, label="none").classes == [None, None]
    assert len(flow.sample()) == 16
    assert (flow.sample(1, num_inference_steps=3).nfe, flow.sample(1, steps=3).nfe) == (3, 3)
    for wrong in ({"label": "eleven"}, {"label": [1]}, {"stepz": 3}, {"prompts": "a cat"}, {"n": 0}):
        with pytest.raises(UsageError):
            flow.sample(**{"n": 2, **wrong})


def test_a_run_can_be_guided_by_another(flow: Run, vae: Run) -> None:
    """Autoguidance changes samples, and a later call without it draws the first ones again."""
    plain = np.asarray(flow.sample(3, label="none"))
    guided = np.asarray(flow.sample(3, label="none", guide=flow.id, guidance=3.0))
    assert guided.shape == plain.shape
    assert np.array_equal(np.asarray(flow.sample(3, label="none")), plain)
    for _ in range(2):  # a run that cannot guide is never left out in silence
        with pytest.raises(UsageError):
            flow.sample(3, label="none", guide=vae.id, guidance=3.0)


def test_a_picture_of_families_has_a_row_for_each(flow: Run, vae: Run) -> None:
    """Row by row the samples of the same seeds, enlarged, next to the family's name."""
    sheet = np.asarray(families.draw([flow, vae], seed=3).convert("L"))
    side = families.SCALE * 8
    for row, run in enumerate((flow, vae)):
        top = families.GAP + row * (side + families.GAP)
        left = families.WORDS + 4 * (side + families.GAP)
        shown = sheet[top : top + side : families.SCALE, left : left + side : families.SCALE]
        np.testing.assert_array_equal(shown, np.asarray(run.sample(10, seed=3)[4]))
        assert sheet[top : top + side, : families.WORDS].min() < 90  # letters


def test_interpolations(flow: Run, vae: Run, digits: Data, tmp_path: Path) -> None:
    """Between seeds, held-out pictures, files, images of Pillow, or rows; a row of the grid is a row of the walk."""
    assert len(flow.interpolate(16)) == 16
    assert vae.interpolate(8, label=3).columns == 8
    digits[0].image.save(tmp_path / "a.png")
    for ends in ((tmp_path / "a.png", digits[1].image), (digits[0], digits[1])):
        walk = vae.interpolate(5, between=ends)
        assert np.array_equal(np.asarray(walk[0]), digits[0].pictures.array[0, :, :, 0])
        assert np.array_equal(np.asarray(walk[4]), digits[1].pictures.array[0, :, :, 0])
    with pytest.raises(UsageError, match="do not fill rows"):
        flow.interpolate(10)


def test_codes(vae: Run, flow: Run, digits: Data, tmp_path: Path) -> None:
    """Rows, arrays and images of the same pictures have the same codes, and a code decodes to a picture."""
    own = vae.encode(digits[:3])
    assert np.array_equal(own, vae.encode(np.asarray(digits[:3])))
    assert np.array_equal(own, vae.encode([digits[i] for i in range(3)]))
    assert np.array_equal(own[:1], vae.encode(digits[0].image))
    assert len(vae.decode(own)) == 3
    assert np.array_equal(np.asarray(flow.decode(flow.encode(digits[:2]))).shape, (2, 8, 8, 1))
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(DataError, match=r"text\.png"):
        vae.encode(tmp_path / "text.png")
    with pytest.raises(UsageError, match=r"is not \(N, 8, 8, 1\) uint8"):
        vae.encode(np.zeros((2, 9, 9, 1), np.uint8))


def test_a_run_says_what_it_is(flow: Run, digits: Data) -> None:
    """Its recipe, history, data and headline; a notebook shows the loss as a chart."""
    assert flow.recipe.family["kind"] == flow.family == "flow_matching"
    assert "kind: flow_matching" in str(flow.recipe)
    assert flow.history["step"] == [5, 10]
    assert "loss" in flow.history.columns
    assert "<svg" in flow.history._repr_html_()
    assert flow.data.id == digits.id
    assert flow.headline.startswith("not measured yet · 10 steps")
    assert flow.evaluations == []
    assert flow.id in flow._repr_html_()


def test_runs_and_datasets_are_tables(store: Store) -> None:
    """Rows by number, columns by name, an order, and what pandas and Arrow read; pictures are images in HTML."""
    runs = genflow.runs(store=store, sort="name")
    assert runs["run"] == sorted(runs["run"])
    assert runs[0]["family"] == "flow_matching"
    assert runs.sort("family", descending=True)[0]["family"] == "vae"
    assert list(runs.pandas()["state"]) == ["finished", "finished"]
    assert pa.table(runs).column("run").to_pylist() == runs["run"]
    datasets = genflow.datasets(store=store)
    assert datasets[0]["name"] == "digits"
    assert is_png(datasets[0]["pictures"])
    assert 'src="data:image/png;base64,' in datasets._repr_html_()
    assert repr(datasets).splitlines()[2].startswith("digits-")
    with pytest.raises(UsageError, match=r"no column 'famly' \(did you mean family\?\)"):
        runs["famly"]


def test_a_long_table_shows_its_ends() -> None:
    """Forty rows are shown, and text is escaped."""
    table = Table({"a": list(range(100)), "b": ["<b>"] * 100})
    assert "… 60 more rows" in repr(table)
    assert "… 60 more rows" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert len(table[:5]) == 5


def test_rows_of_a_dataset(digits: Data) -> None:
    """Rows, pictures, arrays mapped from the file, tensors of a DataLoader, and Arrow."""
    assert (len(digits), len(digits.split("val"))) == (1618, 179)
    row = digits[0]
    assert (row.label, row.id, row.array.shape) == (digits.classes[digits.labels[0]], "digits/0", (8, 8, 1))
    assert is_png(row._repr_png_())
    assert isinstance(digits[:4], Pictures)
    assert digits[[5, 6]].classes == [digits[5].label, digits[6].label]
    assert not digits.numpy().flags.owndata
    assert np.asarray(digits[:4]).max() == 255
    assert np.array_equal(np.asarray(digits)[:4], np.asarray(digits[:4]))
    x, label = next(iter(DataLoader(digits.torch(), batch_size=32)))
    assert torch.equal(x, digits[:32].torch())
    assert label.tolist() == digits.labels[:32].tolist()
    assert digits.arrow().column_names == ["image", "label", "id"]
    assert "1,618 train" in digits._repr_html_()
    with pytest.raises(UsageError, match=r"no split 'vall' \(did you mean val\?\)"):
        digits.split("vall")


def test_points_of_the_plane_are_shown_as_a_plot(store: Store) -> None:
    """They have no pixels, and an array of them is (N, 2)."""
    prepare(store, Section(source="moons", samples=200), in_process, lambda event, **fields: None)
    moons = genflow.data("moons", store=store)
    assert np.asarray(moons[:7]).shape == (7, 2)
    assert is_png(moons[:7]._repr_png_())
    assert is_png(moons[3]._repr_png_())


@pytest.mark.parametrize("wrong", ["nothing", "best:fd"])
def test_errors_are_those_of_the_command(store: Store, wrong: str) -> None:
    """The same classes, with a message and a hint."""
    with pytest.raises(genflow.errors.UsageError) as refused:
        genflow.load(wrong, store=store)
    assert refused.value.hint
    first, second = refused.value._render_traceback_()  # which IPython calls
    assert first == f"UsageError: {refused.value.message}"
    assert second == f"  fix: {refused.value.hint}"
    with pytest.raises(genflow.errors.UsageError, match="nothing"):
        genflow.data("nothing", store=store)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_documented_python_uses_what_exists(page: str) -> None:
    """Every block of Python parses, and the functions of `genflow` in it exist."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, page, "exec")
    assert set(re.findall(r"\bgenflow\.([a-z_]+)\(", text)) <= {*genflow.__all__}
