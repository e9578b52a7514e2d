"""Tables that are wider than the terminal are folded: the first columns are repeated, and no column is cut."""

import shutil
import sys
from collections.abc import Sequence


def terminal_room() -> int:
    """The columns of the terminal on standard output; 0 if it is none, for text of any width."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def column_groups(widths: Sequence[int], left: int, room: int, gap: int = 2) -> list[list[int]]:
    """The columns of each table that together show a wide one.

    Args:
        widths: of all columns.
        left: the number of first columns, which each table has.
        room: of the terminal; 0: any.
        gap: between two columns.
    """
    first = list(range(left))
    used = start = sum(widths[:left]) + gap * (left - 1)
    groups, group = [], list(first)
    for column in range(left, len(widths)):
        need = widths[column] + gap
        if room and used + need > room and len(group) > left:
            groups.append(group)
            group, used = list(first), start
        group.append(column)
        used += need
    return [*groups, group]
