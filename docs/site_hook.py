"""A hook of MkDocs: README.md, CHANGELOG.md and CONTRIBUTING.md become pages, and links that leave docs/ still work."""

import importlib.util
import posixpath
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def _links() -> ModuleType:
    """hatch_build.py, which makes the same changes for the package's page on an index."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINKS = _links()


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from files outside docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files that are no pages lead to the repository, if its address is known; otherwise they are text."""
    folder = posixpath.dirname(page.file.src_uri) if page.file.src_uri not in PAGES.values() else ""
    known = {posixpath.normpath(file.src_uri) for file in files}
    known |= {posixpath.dirname(name) for name in known}

    def changed(link: re.Match[str]) -> str:
        target = link[3].partition("#")[0]
        inside = posixpath.normpath(posixpath.join(folder, target))
        if inside in known or link[1]:
            return link[0].replace(target, f"{target}/README.md", 1) if inside == "decisions" else link[0]
        path = inside.removeprefix("../") if inside.startswith("../") else f"docs/{inside}"
        if page.file.src_uri in PAGES.values():
            path = target
        return str(LINKS.for_elsewhere(f"[{link[2]}]({path})", LINKS.repository()))

    return str(LINKS.RELATIVE.sub(changed, markdown))
