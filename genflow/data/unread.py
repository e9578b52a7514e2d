"""Warnings about files next to pictures that may contain labels or captions, and that genflow does not read."""

import os
from collections.abc import Sequence

from genflow.data.sources.base import printable

UNREAD = (
    *(".json", ".xml", ".caption", ".xlsx", ".xls", ".ods", ".mat", ".pkl", ".pickle", ".h5", ".hdf5", ".npy", ".npz"),
    *(".csv", ".tsv", ".jsonl", ".ndjson", ".lst", ".names", ".yaml", ".yml", ".toml", ".db", ".sqlite"),
)  # endings of files that often contain labels or captions
LIST_BYTES = 2**16  # of a text file that are searched for names of pictures
MOST_LISTS = 20  # text files that are searched
CURE = "write metadata.jsonl, one object a line"


def by_ending(files: Sequence[str], cure: str = CURE) -> list[str]:
    """A warning for each kind of file that may contain labels or captions and is not read, with a cure."""
    notes = []
    for ending in UNREAD:
        names = [name for name in files if name.lower().endswith(ending)]
        if metadata := [name for name in names if os.path.basename(name).lower() == "metadata.json"]:
            notes.append(f"{printable(metadata[0])} is not read; {CURE}")
            names = [name for name in names if name not in metadata]
        if names:
            what = f"{len(names):,} {ending} files are" if len(names) > 1 else f"{printable(names[0])} is"
            first = f", first {printable(names[0])}" if len(names) > 1 else ""
            notes.append(f"{what} not read for labels or captions{first}; {cure}")
    return notes


def lists(root: str, files: Sequence[str], pictures: Sequence[str]) -> list[str]:
    """A warning for text files that name pictures, or have the name of a picture in another folder."""
    names = {os.path.basename(name) for name in pictures}
    stems = {os.path.splitext(name)[0] for name in names}
    texts = [file for file in files if file.lower().endswith(".txt")]
    notes = []
    elsewhere = [file for file in texts if os.path.splitext(os.path.basename(file))[0] in stems]
    if elsewhere:
        many = len(elsewhere) > 1
        what = f"{len(elsewhere):,} .txt file{'s' * many} with the name of a picture in another folder"
        notes.append(f"not read: {what}, first {printable(elsewhere[0])}; put caption files next to their pictures")
    for file in sorted(set(texts) - set(elsewhere))[:MOST_LISTS]:
        try:
            with open(f"{root}/{file}", encoding="utf-8", errors="replace") as opened:
                words = opened.read(LIST_BYTES).replace(",", " ").replace("\\", "/").split()
        except OSError:
            continue
        if any(os.path.basename(word) in names for word in words):
            notes.append(f"{printable(file)} names pictures and is not read; {CURE}")
    return notes
