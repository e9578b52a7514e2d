"""Fashion-MNIST from Debian's package.

References:
    Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): https://arxiv.org/abs/1708.07747
"""

from pathlib import Path

from genflow.data.sources import Opens
from genflow.data.sources.base import Source
from genflow.data.sources.idx import Idx, idx_files
from genflow.errors import SetupError
from genflow.recipe.schema import Data

OPENS = Opens(names=("fashion",), order=2)
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def open_name(name: str, data: Data) -> Source:
    """Open the files of the package.

    Raises:
        SetupError: the package is not installed.
    """
    if not FASHION.is_dir():
        raise SetupError("Fashion-MNIST is not installed on this machine", "apt-get install dataset-fashion-mnist")
    return Idx(name, str(FASHION), idx_files(FASHION))
