"""A database that the installed MLflow cannot use is refused in one line, with the fix."""

import sqlite3
from pathlib import Path

import pytest

from genflow.errors import SetupError
from genflow.storage.store import Store
from genflow.tracking import database


@pytest.mark.parametrize(
    ("revision", "message", "fix"),
    [
        ("", "is not a database of MLflow", "mv "),
        ("ffff", "was written by a newer MLflow", "pip install -U mlflow"),
        ("90e64c465722", "was written by an older MLflow", "mlflow db upgrade"),
    ],
)
def test_a_foreign_database_is_refused(store: Store, revision: str, message: str, fix: str) -> None:
    """A file that is no database, and databases of a newer and of an older MLflow; none of them is changed."""
    file = store.root / "mlflow.db"
    store.root.mkdir()
    file.write_text("no database", encoding="utf-8")
    if revision:
        file.unlink()
        with sqlite3.connect(file) as connection:
            connection.execute("create table alembic_version (version_num)")
            connection.execute("insert into alembic_version values (?)", (revision,))
    before = file.read_bytes()
    with pytest.raises(SetupError, match=message) as error:
        database.check(database.tracking_uri(store))
    assert fix in error.value.hint
    assert file.read_bytes() == before


def test_a_path_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `?` or an escape in the store's path is refused, and no file is written elsewhere."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("a?b", "a%41"):
        with pytest.raises(SetupError, match="the path of the store contains"):
            database.prepare(Store(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
