"""Say which files of a source were skipped: kinds and counts, and the command that installs a missing decoder."""

from collections.abc import Mapping

HEIC = "HEIC file"
AVIF = "AVIF file"
CURES = {HEIC: 'pip install "genflow-ray[heic]"', AVIF: "pip install --upgrade pillow"}
COUNTABLE = ("file", "folder", "link", "video", "archive", "table", "array", "catalogue")


def cure(skipped: Mapping[str, int]) -> str:
    """The command that installs the decoder of the most frequent skipped kind that has one; empty if none has."""
    return next((CURES[kind] for kind in sorted(skipped, key=lambda kind: -skipped[kind]) if kind in CURES), "")


def describe(skipped: Mapping[str, int]) -> str:
    """The skipped files as one line, such as `20 HEIC files (pip install ... reads them), 3 hidden files`."""
    return ", ".join(_count(kind, number) for kind, number in sorted(skipped.items(), key=lambda item: -item[1]))


def _count(kind: str, number: int) -> str:
    head, bracket, rest = kind.partition(" (")
    if number != 1 and head.rpartition(" ")[2] in COUNTABLE:
        head += "s"
    them = "them" if number != 1 else "it"
    note = f" ({CURES[kind]} reads {them})" if kind in CURES else ""
    return f"{number:,} {head}{bracket}{rest}{note}"
