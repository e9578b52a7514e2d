"""A search that is asked to go on for longer begins with the trials of one of its kind that was shorter.

How many trials there may be, for how long, up to which target and with how many seeds they are confirmed is no part of
what a trial is. So two searches that differ in nothing else are kin, and where the record of the one ends the other may
go on, as if it had been broken off there (see docs/decisions/0011-how-a-search-goes-on.md).
"""

import shutil
from pathlib import Path

from genflow.errors import UsageError
from genflow.storage.files import clear_disk_errors, write_atomically
from genflow.storage.store import Store
from genflow.tuning.search import CONFIRM, KIN, TRIALS, Search
from genflow.tuning.trial_log import RECORD, Record


def inherit(store: Store, search: Search) -> tuple[str, int]:
    """Give a search that has not begun the trials of its kin, of which the one with most comes first.

    Returns:
        Whose they were, and how many; of nobody: ("", 0). A store in a bucket hands nothing on.
    """
    own = search.folder(store)
    if store.shared or search.recipe.tune.scheduler == "pbt" or (own / TRIALS / RECORD).exists():
        return "", 0
    kin = {folder: len(Record(folder / TRIALS).rows()) for folder in _kin(store, search)}
    for folder, count in sorted(kin.items(), key=lambda pair: (-pair[1], pair[0])):
        if 0 < count <= search.trials:
            try:
                with store.lock("searches", folder.name, wait=False), clear_disk_errors(own):
                    _copy(folder, own)
            except UsageError:  # it is under way
                continue
            return folder.name, count
    return "", 0


def _kin(store: Store, search: Search) -> list[Path]:
    own = search.folder(store)
    folders = [file.parent for file in own.parent.glob(f"*/{KIN}") if file.read_text() == search.kin]
    return [folder for folder in folders if folder != own]


def _copy(theirs: Path, own: Path) -> None:
    """The records last: what was broken off before them begins anew."""
    for part in (CONFIRM, TRIALS):
        for folder in (theirs / part).glob("[0-9]*"):
            shutil.copytree(folder, own / part / folder.name, dirs_exist_ok=True)
        if (record := theirs / part / RECORD).exists():
            write_atomically(own / part / RECORD, record.read_bytes())
