"""Find the `Source` that a user named: a built-in data set, or a file or folder, recognised by its content."""

import difflib
import os
import re
from pathlib import Path

from genflow.data import sources
from genflow.data.sources.base import Source, dataset_name, printable
from genflow.data.sources.folder import Folder
from genflow.data.sources.mixed import refuse_mixed
from genflow.data.sources.walk import ARCHIVES, remembered
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data


def find(data: Data) -> Source:
    """Find the source that `data.source` names.

    Raises:
        UsageError: the source does not exist, or an option does not apply to it.
        SetupError: a built-in data set is not installed.
        DataError: the source is empty or unreadable.
    """
    source = _find(data)
    for option, wanted, choices in (
        ("labels", data.labels, source.label_choices),
        ("captions", data.captions, source.caption_choices),
    ):
        if wanted not in choices and not source.has_columns:
            raise UsageError(
                f"--{option} {wanted}: {source.about['kind']} has no such {option}",
                f"--{option} with one of {', '.join(choices)}",
            )
    return source


def _find(data: Data) -> Source:
    text, known = data.source, ", ".join(sources.names())
    if not text:
        raise UsageError("no data source was given", f"use one of {known}, or a path")
    for kind, opens in sources.kinds().items():
        if opens.matches(text):
            named: Source = sources.module(kind).open_name(text, data)
            return named
    if re.match(r"[a-z][a-z0-9+]*://", text):
        raise UsageError(f"the source {text} is a URL, but a source is a local path", "download it first")
    path = Path(os.path.abspath(os.path.expanduser(text)))
    try:
        if path.is_dir() or path.is_file():
            return _open_path(path, data)
    except PermissionError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{text[:200]!r} is not a valid path: {error}") from error
    reason = "neither a file nor a folder" if path.exists() else "no such file, folder or built-in data set"
    close = difflib.get_close_matches(text, sources.names(), n=1)
    raise UsageError(
        f"unknown source {printable(text[:200])!r}: {reason}" + (f" (did you mean {close[0]}?)" if close else ""),
        f"use one of {known}, or a path",
    )


def _open_path(path: Path, data: Data) -> Source:
    """Open a file, or a folder with one kind of input, with the first module that supports it."""
    if path.is_dir():
        with remembered(str(path)) as listing:
            refuse_mixed(listing)
            return _first(path, data) or Folder(dataset_name(path.name), str(path))  # its error lists the contents
    if found := _first(path, data):
        return found
    if path.suffix.lower() in ARCHIVES:
        raise UsageError(f"{printable(str(path))} is an archive, which cannot be read", "unpack it and use the folder")
    raise UsageError(
        f"{printable(str(path))} is not a supported file",
        f"use a folder of {sources.folders()}, or a file of type {sources.files()}",
    )


def _first(path: Path, data: Data) -> Source | None:
    for kind, opens in sources.kinds().items():
        if (opens.files or opens.folders) and (source := sources.module(kind).open_path(path, data)):
            found: Source = source
            return found
    return None
