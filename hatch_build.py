"""The texts that a page outside this folder shows: links to other files are made absolute, or become plain words.

The address of the repository is stated in one place: the variable GENFLOW_URL when the wheel or the site is built, such
as `GENFLOW_URL=https://host/owner/genflow make wheel`. Without it there are no links that lead nowhere.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FILES = "/blob/HEAD/"  # of a repository's address: a page about a file
RAW = "/raw/HEAD/"  # the file's bytes, for pictures
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
CAPTIONED = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]+\)\n\n(\*[^*].*?\*\n\n)?", re.MULTILINE | re.DOTALL)


def repository() -> str:
    """The address of the repository; empty if it is not stated."""
    return os.environ.get("GENFLOW_URL", "").strip().rstrip("/")


def for_elsewhere(markdown: str, url: str) -> str:
    """Markdown whose relative links work outside the repository.

    Args:
        markdown: the text; its links are relative to the root of the repository.
        url: the repository's address; empty: pictures are left out with their captions, and links become plain text.
    """
    if not url:
        markdown = CAPTIONED.sub("", markdown)
        return RELATIVE.sub(lambda link: "" if link[1] else link[2], markdown)
    return RELATIVE.sub(lambda link: f"{link[1]}[{link[2]}]({url}{RAW if link[1] else FILES}{link[3]})", markdown)


class Readme(MetadataHookInterface):
    """The readme and the URLs of the package's page on an index."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the fields that pyproject.toml calls dynamic."""
        url, text = repository(), Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_elsewhere(text, url)}
        documentation = {"Documentation": f"{url}{FILES}docs", "Changelog": f"{url}{FILES}CHANGELOG.md"}
        metadata["urls"] = {"Repository": url, "Issues": f"{url}/issues", **documentation} if url else {}
