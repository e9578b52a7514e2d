"""A user id without an entry in the user database, as containers use them: no HOME, or one that cannot be written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

USER = 424242
# The tests' Python and checkout may be in folders that only root can enter, so the user keeps the right to read.
RIGHTS = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
PROGRAM = """
import contextlib, io, json, sys
from genflow.cli import app
for command in ("data ls", "runs ls", "doctor"):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["genflow", *command.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app.main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def as_user(temporary: Path, **variables: str) -> list[Any]:
    """(exit code, standard output, standard error) of `data ls`, `runs ls` and `doctor` of this user."""
    program = shutil.which("setpriv")
    if not program or os.getuid():
        pytest.skip("another user needs setpriv and root")
    command = [program, f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *RIGHTS, sys.executable, "-c", PROGRAM]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
                   "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), **variables}  # fmt: skip
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, encoding="utf-8")
    if "setpriv: " in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files of all users, with a path that is short enough for Ray."""
    folder = Path("/tmp") / f"genflow-test-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_home_is_not_set(temporary: Path) -> None:
    """The home folder is a private one among the temporary files, and every command works."""
    store = temporary / "store"
    store.mkdir()
    store.chmod(0o777)
    for code, _, err in as_user(temporary, GENFLOW_STORE=str(store)):
        assert (code, err) == (0, "")
    home = temporary / f"genflow-{USER}"
    assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (USER, 0o700)
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_home_cannot_be_written(temporary: Path) -> None:
    """Commands that read work, and `doctor` names what Ray cannot write."""
    *reading, (code, out, err) = as_user(temporary, GENFLOW_STORE="/nowhere/store", HOME="/nowhere")
    assert [code for code, _, _ in reading] == [0, 0]
    assert code == 3
    assert "cannot write Ray's token /nowhere/.ray/auth_token" in out
    assert "fix: set RAY_AUTH_TOKEN_PATH to a file that you can write to" in out
    assert err.startswith("error: 2 of 13 checks failed: store, Ray token\n")


def test_the_home_folder_belongs_to_another_user(temporary: Path) -> None:
    """A folder of that name that belongs to another user is refused in one line, by every command."""
    (temporary / f"genflow-{USER}").mkdir(mode=0o700)
    for code, out, err in as_user(temporary):
        assert (code, out) == (3, "")
        assert err.splitlines() == [
            f"error: HOME is not set, and {temporary}/genflow-{USER} is not private to user id {USER}",
            "  fix: export HOME=FOLDER, a folder that you can write to",
        ]
