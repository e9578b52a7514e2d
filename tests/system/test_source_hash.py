"""The hash of the source files that made an artifact."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.small import FACTS, recipe

from genflow import runs
from genflow.data import plan
from genflow.data.sources.find import find
from genflow.recipe.schema import Data
from genflow.system import source_hash

GREY = FACTS["grey"]


def forget() -> None:
    """Clear the caches, so that every file is read again."""
    for cached in (source_hash.code_of, source_hash.fingerprint, source_hash._hash, source_hash._modules):
        cached.cache_clear()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout, which is hashed instead of the original."""
    root = source_hash.PACKAGE.parent
    for folder in ("genflow", "jobs"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.html"))
    monkeypatch.setattr(source_hash, "PACKAGE", tmp_path / "genflow")
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def edited(copy: Path) -> Callable[[str], None]:
    """A function that adds a line to a file of the copy."""

    def edit(name: str) -> None:
        with open(copy / name, "a", encoding="utf-8") as file:
            file.write("# changed\n")
        forget()

    return edit


def test_only_source_files_change_the_hash(copy: Path, edited: Callable[[str], None]) -> None:
    """A changed line changes the hash; compiled files and the order of names do not."""
    names = ("genflow/data", "jobs/prepare.py")
    before = source_hash.fingerprint(*names)
    (copy / "genflow/data/__pycache__").mkdir()
    (copy / "genflow/data/__pycache__/x.pyc").write_bytes(b"x")
    forget()
    assert source_hash.fingerprint(*reversed(names)) == before
    edited("jobs/prepare.py")
    assert source_hash.fingerprint(*names) != before


def test_a_wheel_has_the_same_hash(copy: Path) -> None:
    """In a wheel `jobs/` is in genflow/_home, and both hashes equal those of the checkout."""
    names = ("genflow/data", "jobs/prepare.py")
    before = source_hash.fingerprint(*names), source_hash.code_of("jobs/tune.py")
    (copy / "genflow/_home").mkdir()
    shutil.move(copy / "jobs", copy / "genflow/_home/jobs")
    forget()
    assert source_hash.resources_dir() == copy / "genflow/_home"
    assert (source_hash.fingerprint(*names), source_hash.code_of("jobs/tune.py")) == before
    assert "jobs/runtime/tune/asha.py" in source_hash.imported("jobs/tune.py")


@pytest.mark.parametrize("of", [source_hash.fingerprint, source_hash.code_of])
def test_a_name_that_does_not_exist(of: Callable[..., str]) -> None:
    """An unknown file raises an error instead of giving an empty hash."""
    with pytest.raises(FileNotFoundError):
        of("genflow/nowhere.py")


def test_imports_are_followed(copy: Path) -> None:
    """Indirect imports, both forms of import, imports in functions and in `try` are found; TYPE_CHECKING is skipped."""
    files = {
        "root": "import genflow.made.plain\nfrom genflow.made import named\n"
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from genflow.made import typed\n"
                "else:\n    from genflow.made import untyped\n",
        "plain": "import torch\ntry:\n    from genflow.made.tried import Something\nexcept ImportError:\n    pass\n",
        "named": "class A:\n    def f(self):\n        with x:\n            from genflow.made import inner\n",
        "typed": "", "untyped": "", "tried": "Something = 1", "inner": "from genflow.made import CONSTANT",
        "__init__": "CONSTANT = 1", "alone": "",
    }  # fmt: skip
    (copy / "genflow/made").mkdir()
    for name, text in files.items():
        (copy / f"genflow/made/{name}.py").write_text(text, encoding="utf-8")
    found = {Path(name).stem for name in source_hash.imported("genflow/made/root.py")}
    assert found == set(files) - {"typed", "alone"}


def test_a_relative_import_is_an_error(copy: Path) -> None:
    """A relative import raises an error, because the search cannot follow it."""
    (copy / "genflow/relative.py").write_text("from . import batch\n", encoding="utf-8")
    with pytest.raises(ValueError, match="relative"):
        source_hash.imported("genflow/relative.py")


@pytest.mark.parametrize(
    "name",
    [
        "genflow/data/shards.py", "genflow/data/stream.py", "genflow/data/pairs.py", "genflow/training/optim.py",
        "genflow/families/ddpm.py", "genflow/families/gaussian.py", "genflow/nets/mlp.py", "genflow/maths/samplers.py",
    ],
)  # fmt: skip
def test_a_change_that_may_change_the_result_is_another_run(edited: Callable[[str], None], name: str) -> None:
    """A change in data scaling, row order, the training loop, the run's family or net, or their imports."""
    before = runs.address(recipe("ddpm", GREY, "mlp"), GREY)
    edited(name)
    assert runs.address(recipe("ddpm", GREY, "mlp"), GREY) != before


@pytest.mark.parametrize(
    "name",
    [
        "genflow/families/vae.py", "genflow/nets/conv.py", "genflow/tracking/journal.py", "genflow/storage/lock.py",
        "genflow/errors.py", "genflow/system/environment.py", "genflow/evaluation/interval.py", "genflow/__init__.py",
        "genflow/launch/local.py", "genflow/serving/app.py", "jobs/train.py", "jobs/runtime/entrypoint.py",
    ],
)  # fmt: skip
def test_a_change_that_cannot_change_the_result_is_the_same_run(edited: Callable[[str], None], name: str) -> None:
    """A change in other families and nets, messages, tracking, storage, evaluation or serving keeps the run's id."""
    before = runs.address(recipe("ddpm", GREY, "mlp"), GREY)
    edited(name)
    assert runs.address(recipe("ddpm", GREY, "mlp"), GREY) == before


def test_what_is_left_out_exists(copy: Path) -> None:
    """Every path in NOT_HASHED exists, so the list is updated when a module moves."""
    assert [name for name in source_hash.NOT_HASHED if not source_hash._path(name).exists()] == []


def test_a_change_in_a_source_gives_another_dataset(edited: Callable[[str], None]) -> None:
    """The files of sources are hashed, although no import leads to them."""
    data = Data(source="digits")
    before = plan.address_hash(find(data), data)
    edited("genflow/data/sources/digits.py")
    assert plan.address_hash(find(data), data) != before


@pytest.mark.parametrize(
    "name",
    ["jobs/prepare.py", "genflow/pipeline/stages.py", "genflow/pipeline/results.py", "genflow/evaluation/results.py"],
)
def test_a_change_in_how_a_job_runs_or_reports_gives_the_same_dataset(edited: Callable[[str], None], name: str) -> None:
    """The declaration of the stage and the types of results do not change a shard."""
    data = Data(source="digits")
    before = plan.address_hash(find(data), data)
    edited(name)
    assert plan.address_hash(find(data), data) == before



@pytest.mark.parametrize(
    ("root", "needed"),
    [
        ("genflow/sampling/reflow.py", ["genflow/data/pairs.py", "genflow/maths/samplers.py"]),
        ("genflow/evaluation/evaluate.py", ["genflow/data/shards.py", "genflow/evaluation/metrics/frechet.py"]),
        ("genflow/evaluation/features/extractor.py", ["genflow/training/muon.py", "genflow/data/shards.py"]),
        ("genflow/data/prepare.py", ["genflow/data/images.py", "genflow/data/shard_writer.py"]),
        ("jobs/tune.py", ["jobs/runtime/tune/searchers.py", "genflow/tuning/space.py", "genflow/training/loop.py"]),
        ("jobs/tables.py", ["genflow/tables/quantities.py", "genflow/evaluation/report/charts.py"]),
    ],
)
def test_the_other_stages_follow_their_imports(root: str, needed: list[str]) -> None:
    """The hashed files of each stage include those that compute its numbers, and no tracking or storage."""
    found = source_hash.imported(root)
    assert set(needed) <= set(found)
    assert [name for name in found if name.startswith(("genflow/tracking", "genflow/storage"))] == []
