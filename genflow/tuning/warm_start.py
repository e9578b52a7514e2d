"""Start a longer search with the trials of a shorter one.

The number of trials, the minutes, the target and the number of confirming seeds do not change what a trial is. Two
searches that differ in nothing else share a resume key, and the longer one continues the trial log of the shorter one
(see docs/decisions/0011-how-a-search-resumes.md).
"""

import shutil
from pathlib import Path

from genflow.errors import DataError, UsageError
from genflow.storage.files import explain_disk_errors, write_atomically
from genflow.storage.manifest import warn
from genflow.storage.store import Store
from genflow.tuning.search import CONFIRM, RESUME_KEY, TRIALS, Search
from genflow.tuning.trial_log import RECORD, TrialLog


def inherit(store: Store, search: Search) -> tuple[str, int]:
    """Copy the trials of the longest search that shares the resume key, if this search has not started.

    Returns:
        The id of that search and the number of its trials; ("", 0) if there is none. Not supported in a bucket.

    Raises:
        DataError: that search is finished, and a file of it differs from its manifest.
    """
    own = search.folder(store)
    if store.mirror or search.recipe.tune.scheduler == "pbt" or (own / TRIALS / RECORD).exists():
        return "", 0
    shorter = {folder: len(TrialLog(_intact(store, folder) / TRIALS).rows()) for folder in _shorter(store, search)}
    for folder, count in sorted(shorter.items(), key=lambda pair: (-pair[1], pair[0])):
        if 0 < count <= search.trials:
            try:
                with store.lock("searches", folder.name, wait=False), explain_disk_errors(own):
                    _copy(folder, own)
            except UsageError:  # that search is running
                continue
            return folder.name, count
    return "", 0


def _intact(store: Store, folder: Path) -> Path:
    """The folder of a search, after its files were compared with its manifest, if it is finished."""
    if finished := store.get("searches", folder.name):
        finished.verify()
    return folder


def _shorter(store: Store, search: Search) -> list[Path]:
    own = search.folder(store)
    for finished in store.artifacts("searches"):  # a damaged key would hide a search
        if RESUME_KEY in finished.manifest["files"]:
            try:
                finished.file(RESUME_KEY)
            except DataError as error:
                warn(error)
    keys = {file.parent: file.read_bytes() for file in own.parent.glob(f"*/{RESUME_KEY}")}
    return [folder for folder, key in keys.items() if key == search.resume_key.encode() and folder != own]


def _copy(source: Path, own: Path) -> None:
    """Copy the trial logs last: a copy that was interrupted before them starts again."""
    for part in (CONFIRM, TRIALS):
        for folder in (source / part).glob("[0-9]*"):
            shutil.copytree(folder, own / part / folder.name, dirs_exist_ok=True)
        if (log := source / part / RECORD).exists():
            write_atomically(own / part / RECORD, log.read_bytes())
