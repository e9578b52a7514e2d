"""An artifact: a finished folder of the store, and the kinds of artifacts."""

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow.storage import mirror
from genflow.storage.manifest import verify, verify_file

KINDS = ("datasets", "features", "runs", "pairs", "latents", "texts", "searches", "evaluations", "reports")
JOURNALED = ("runs", "searches")  # kinds with journals of their own
NOUNS = {
    "features": "feature extractor", "pairs": "pairs", "latents": "latents", "texts": "text embeddings",
    "searches": "search",
}  # fmt: skip
COMMAND_FOR = {
    "datasets": "genflow prepare SOURCE --name NAME makes one",
    "runs": "genflow train FAMILY --data NAME makes one",
    "pairs": "genflow reflow RUN makes some",
    "latents": "genflow encode DATASET --autoencoder RUN makes some",
    "texts": "genflow encode DATASET --text minilm makes some",
    "searches": "genflow tune FAMILY --data NAME makes one",
    "evaluations": "genflow evaluate RUN makes one",
    "reports": "genflow compare RUN... makes one",
    "features": "genflow evaluate RUN makes one",
}


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the store and its manifest.

    Args:
        kind, id: its place in the store.
        folder: its path on this machine; in a bucket's mirror, the path may not exist yet.
        manifest: its manifest.
        url: the URL of a store in a bucket, whose files are downloaded on first use; empty for a folder.
    """

    kind: str
    id: str
    folder: Path
    manifest: dict[str, Any]
    url: str = ""

    @property
    def path(self) -> Path:
        """The folder on this machine, with all of its files."""
        if not self.url:
            return self.folder
        here = mirror.for_url(self.url)
        return here.fetch_folder(here.root / self.kind / self.id, self.manifest)

    @property
    def here(self) -> Path:
        """The folder on this machine; in a bucket's mirror, it has the files that were used."""
        return mirror.for_url(self.url).root / self.kind / self.id if self.url else self.folder

    @property
    def name(self) -> str:
        """The name that the user chose."""
        return str(self.manifest.get("name") or self.id.rpartition("-")[0])

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON document that was committed with it."""
        return self.manifest.get("meta", {})

    def file(self, name: str) -> Path:
        """The path on this machine of one of its files, after the file was compared with the manifest.

        Raises:
            DataError: the file is missing or differs from the manifest.
        """
        return verify_file(self.here, name, self.manifest)

    def files(self, pattern: str) -> list[str]:
        """The names of its files that match a pattern such as `samples/*.png`, sorted."""
        return sorted(fnmatch.filter(self.manifest["files"], pattern))

    def verify(self, sizes: Collection[str] = ()) -> "Artifact":
        """Check every file against the manifest.

        Args:
            sizes: files of which only the size is checked; those of a bucket may not be on this machine yet.

        Raises:
            DataError: a file is missing or differs from the manifest.
        """
        verify(self.here if sizes else self.path, self.manifest, sizes)
        return self
