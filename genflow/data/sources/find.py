"""From what a person named to a `Source`: a data set that is built in, a file, or a folder, known by its content."""

import difflib
import os
import re
from pathlib import Path

from genflow.data.sources.base import Source
from genflow.data.sources.densities import DENSITIES, Plane
from genflow.data.sources.digits import Digits
from genflow.data.sources.folder import Folder, printable
from genflow.data.sources.idx import FASHION, IDX_FILE, Idx, idx_files
from genflow.data.sources.npz import Npz
from genflow.data.sources.parquet import SUFFIXES, Tables, table_files
from genflow.data.sources.stacked import PREFIX, Stack
from genflow.errors import DataError, SetupError, UsageError
from genflow.recipe.schema import Data

BUILT_IN = ("digits", "fashion", *DENSITIES)


def find(data: Data) -> Source:
    """The source that `data.source` names.

    Raises:
        UsageError: there is no such source, or an option does not apply to it.
        SetupError: `fashion` is not installed.
        DataError: it holds nothing, or cannot be read.
    """
    text = data.source
    if not text:
        raise UsageError("no source was named", f"one of {', '.join(BUILT_IN)}, or a path")
    if text in DENSITIES:
        if data.size is not None or data.channels != "auto":
            raise UsageError(f"{text} is a density in the plane: it has no size and no channels")
        return Plane(text, data.samples, data.seed)
    if text.startswith(PREFIX):
        if data.channels == 1:
            raise UsageError("a stack has three channels", "leave --channels out")
        base = find(data.model_copy(update={"source": text.removeprefix(PREFIX)}))
        return Stack(base, data.samples, data.val, data.seed)
    if text == "digits":
        return Digits()
    if text == "fashion":
        if not FASHION.is_dir():
            raise SetupError("Fashion-MNIST is not installed on this machine", "apt-get install dataset-fashion-mnist")
        return Idx("fashion", str(FASHION), idx_files(FASHION))
    if re.match(r"[a-z][a-z0-9+]*://", text):
        raise UsageError(f"the source {text} is a URL; a source is a path", "download it first")
    path = Path(os.path.abspath(os.path.expanduser(text)))
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
    except PermissionError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{text[:200]!r} is no path: {error}") from error
    kind = "neither a file nor a folder" if path.exists() else "no such file or folder, and no built-in data set"
    close = difflib.get_close_matches(text, BUILT_IN, n=1)
    raise UsageError(
        f"unknown source {printable(text[:200])!r}: {kind}" + (f" (did you mean {close[0]}?)" if close else ""),
        f"name one of {', '.join(BUILT_IN)}, or a path",
    )


def _folder(path: Path) -> Source:
    name = clean(path.name)
    if files := idx_files(path):
        return Idx(name, str(path), files)
    folder = Folder(name, str(path))
    if not folder.holds_pictures() and (files := table_files(path)):
        return Tables(name, str(path), files)
    return folder


def _file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if IDX_FILE.fullmatch(path.name):
        return Idx(clean(re.split(r"[-_.]?(images|labels)[-_.]idx", path.name)[0]), str(path), idx_files(path))
    if suffix == ".npz":
        return Npz(clean(path.stem), str(path), [str(path)])
    if suffix in SUFFIXES:
        return Tables(clean(path.stem), str(path.parent), [path.name])
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"):
        raise UsageError(f"{printable(str(path))} is an archive", "unpack it and name the folder")
    raise UsageError(
        f"{printable(str(path))} is no file that can be prepared",
        f"name a folder of pictures, or a file that is idx, .npz, {', '.join(SUFFIXES)}",
    )


def clean(name: str) -> str:
    """A file's name as a dataset's name: letters, digits, `.`, `_` and `-`, at most 60."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", printable(name)).strip("-._")
    return text[:60].rstrip("-._") or "data"
