"""The site of the documentation is built without a warning, and every page is in its navigation."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")


class _Settings(yaml.SafeLoader):
    """Reads mkdocs.yml, whose !ENV names variables."""


_Settings.add_constructor("!ENV", lambda loader, node: "")


def pages(part: Any) -> list[str]:
    """The files of a navigation."""
    if isinstance(part, str):
        return [part]
    values = part if isinstance(part, list) else part.values()
    return [page for value in values for page in pages(value)]


def test_every_page_is_in_the_navigation() -> None:
    """A new file of docs/ appears on the site."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Settings)
    listed = pages(settings["nav"])
    files = [file for kind in ("md", "ipynb") for file in (ROOT / "docs").rglob(f"*.{kind}")]
    assert {str(file.relative_to(ROOT / "docs")) for file in files} == {
        page for page in listed if page not in ("index.md", "changelog.md", "contributing.md")
    }
    assert len(listed) == len(set(listed))


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason="pip install 'genflow-ray[docs]'"
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Home is the README with pictures; the API has its functions; a link to a file outside is text or absolute."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "GENFLOW_URL": "https://host.example/me/genflow"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="text-to-image.png"' in home
    assert 'href="https://host.example/me/genflow/blob/HEAD/benchmarks/prompts.txt"' in home
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("prepare", "train", "load", "Run", "Samples"):
        assert f">{name}<" in api
    notebook = (tmp_path / "notebooks" / "first_model" / "index.html").read_text(encoding="utf-8")
    assert "data:image/png" in notebook
