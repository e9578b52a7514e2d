"""The names of text encoders, and the architectures, one a file of this folder."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

NAMES = ("minilm",)  # modules that find the folder of an installed package
NOT_ARCHITECTURES = ("base", "folder", "folder_encoder", "joined", "pipeline", "registry", *NAMES)
KNOWN = f"text encoders: {', '.join(NAMES)}, or a local folder of CLIP text, T5 or BERT, saved by transformers"
PACKAGE = __name__.rpartition(".")[0]


def home_of(name: str) -> Path:
    """The folder of a name in `NAMES`.

    Raises:
        SetupError: its package is not installed.
    """
    found: Path = importlib.import_module(f"{PACKAGE}.{name}").home()
    return found


def package_of(name: str) -> str:
    """The installed Python package of a name in `NAMES`.

    Raises:
        SetupError: it is not installed.
    """
    found: str = importlib.import_module(f"{PACKAGE}.{name}").package()
    return found


def architecture(model_type: str) -> ModuleType | None:
    """The module of an architecture by the `model_type` of config.json; None if genflow has none.

    Such a module defines `MODEL_TYPES`, `build(config, tensors) -> (TextNet, NetConfig)`, and
    `own_name(stored) -> str`, which maps the stored name of a tensor to its name in the net.
    """
    files = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(file.name for file in files if file.name not in NOT_ARCHITECTURES)
    modules = (importlib.import_module(f"{PACKAGE}.{name}") for name in names)
    return next((module for module in modules if model_type in module.MODEL_TYPES), None)
