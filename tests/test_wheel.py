"""The wheel contains jobs/ and pipelines/ inside the package, and works from any folder."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from genflow.data.prepare import in_process, prepare
from genflow.recipe.schema import Data
from genflow.storage.store import Store


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel, as pip installs them."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("genflow_ray-")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(installed: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("GENFLOW_STORE", "PYTHONPATH")}
    environment |= {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    program = [sys.executable, "-c", "from genflow.cli.app import main; main()", *args]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_the_wheel_adds_one_package(installed):
    """The wheel adds only `genflow` to site-packages; `jobs` and `pipelines` are not top-level packages."""
    assert {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")} == {"genflow"}
    assert {p.name for p in (installed / "genflow/_home").iterdir()} == {"jobs", "pipelines", "cluster.yaml"}


def test_the_page_on_an_index_has_no_broken_links(installed, monkeypatch):
    """Without the repository's address no relative link is left; with it, links and pictures are absolute."""
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "# genflow" in text
    assert "pip install" in text
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert "Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence" in text

    monkeypatch.syspath_prepend(ROOT)
    import hatch_build

    given = "# A\n\n![a cat](docs/cat.png)\n\n*Drawn by a [run](docs/run.md).*\n\nSee [more](docs/b.md#x)."
    assert hatch_build.for_elsewhere(given, "") == "# A\n\nSee more."
    url = "https://host.example/me/genflow"
    found = hatch_build.for_elsewhere(given, url)
    assert f"![a cat]({url}/raw/HEAD/docs/cat.png)" in found
    assert f"[more]({url}/blob/HEAD/docs/b.md#x)" in found
    monkeypatch.setenv("GENFLOW_URL", f"{url}/")
    stated: dict[str, Any] = {}
    hatch_build.Readme(str(ROOT), {}).update(stated)
    assert stated["urls"]["Repository"] == url


def test_a_job_runs_from_the_wheel(installed, tmp_path):
    """A command finds its job and its preset inside the wheel, in an empty folder.

    The job finds what the checkout has prepared, so that it starts no Ray.
    """
    data = Data(source="ring8", samples=500)
    made, _ = prepare(Store(tmp_path / ".genflow"), data, in_process, lambda event, **fields: None)
    done = run(installed, tmp_path, "prepare", "ring8", "--set", "data.samples=500", "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["dataset"], found["cached"]) == ("genflow.prepare/1", made.id, True)
    planned = run(installed, tmp_path, "run", "quickstart", "--dry-run")
    assert [line.split()[1] for line in planned.stdout.splitlines()[2:5]] == ["prepare", "train", "train"]


def test_the_code_hash_is_the_checkouts(installed):
    """An artifact made from the wheel is cached for the checkout, and the other way round."""
    hashed = "s.fingerprint('genflow/maths', 'jobs/prepare.py'), s.code_of('jobs/tune.py')"
    program = f"from genflow.system import source_hash as s; print({hashed})"
    prints = {
        subprocess.run(
            [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True,
            text=True, check=True, cwd=installed, encoding="utf-8",
        ).stdout
        for path in (installed, ROOT)
    }  # fmt: skip

    assert len(prints) == 1
