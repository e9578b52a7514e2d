"""The folder of a local Ray: private, and with a path that is short enough for sockets."""

import stat
from pathlib import Path

import pytest

from genflow.errors import SetupError
from genflow.system import environment


@pytest.mark.ray
def test_other_users_cannot_enter_the_session_folder(ray_local: None) -> None:
    """A folder around the session has mode 0700, because Ray gives its own folders mode 0777."""
    from ray._private import worker

    session = Path(worker._global_node.get_session_dir_path())
    assert any(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (session.parent, session.parent.parent))


def test_a_long_folder_for_temporary_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the length, the limit and the variable, before Ray starts."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SetupError, match="Ray's sockets in it allow") as error:
        environment.ray_temp_folder()
    assert error.value.hint == "export TMPDIR=/tmp"
