"""A table: columns by name. A notebook shows it as HTML, with pictures; other libraries read it as Arrow."""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, overload

from genflow.errors import SetupError, UsageError, nearest
from genflow.system.streams import NONE

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN = 40  # rows that are shown; half of them from the end
DATES = ("made",)  # columns of seconds since 1970
STYLE = "text-align:{};padding:.25em .6em;vertical-align:middle;white-space:nowrap"


class Table:
    """Rows of named values: `table[0]` is a row, `table["fd"]` a column, `table[:3]` and `table.sort("fd")` tables.

    Args:
        columns: values by name, of equal lengths. Bytes are PNG files; None is a missing value.
        above: HTML to show above the table.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], above: str = "") -> None:
        self._columns = {name: list(values) for name, values in columns.items()}
        self._above = above
        if len({len(values) for values in self._columns.values()}) > 1:
            raise ValueError(f"columns of different lengths: { {k: len(v) for k, v in self._columns.items()} }")

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), []))

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice) -> "Table": ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: "int | slice | str") -> Any:
        if isinstance(key, str):
            if key not in self._columns:
                raise UsageError(f"no column {key!r}{nearest(key, self.columns)}")
            return list(self._columns[key])
        if isinstance(key, slice):
            return Table({name: values[key] for name, values in self._columns.items()})
        if not -len(self) <= key < len(self):
            raise IndexError(f"row {key} of a table of {len(self)} rows")
        return {name: values[key] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    def sort(self, by: str, *, descending: bool = False) -> "Table":
        """The rows in the order of a column; rows without a value come last.

        Raises:
            UsageError: there is no such column.
        """
        values = self[by]
        known = sorted((i for i, v in enumerate(values) if v is not None), key=lambda i: values[i], reverse=descending)
        order = known + [i for i, v in enumerate(values) if v is None]
        return Table({name: [column[i] for i in order] for name, column in self._columns.items()})

    def arrow(self) -> "pa.Table":
        """The table as `pyarrow.Table`."""
        import pyarrow as pa

        return pa.table(dict(self._columns))

    def pandas(self) -> "pd.DataFrame":
        """The table as `pandas.DataFrame`.

        Raises:
            SetupError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise SetupError("pandas is not installed", "pip install pandas, or use .arrow()") from error
        return pd.DataFrame(dict(self._columns))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The Arrow stream from which polars, DuckDB and pandas read the table."""
        return self.arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        from genflow.cli import console

        names = [name for name in self._columns if not _is_picture(self._columns[name])]
        rows = [[_text(name, self._columns[name][i]) for name in names] for i in self._shown()]
        left = next((n for n, name in enumerate(names) if _is_number(self._columns[name])), len(names))
        hidden = len(self) - len(rows)
        return console.table(names, rows, left=left) + (f"\n… {hidden:,} more rows" if hidden else "")

    def _repr_html_(self) -> str:
        sides = {name: "right" if _is_number(values) else "left" for name, values in self._columns.items()}
        head = "".join(f'<th style="{STYLE.format(side)}">{escape(name)}</th>' for name, side in sides.items())
        shown, hidden = self._shown(), len(self) - len(self._shown())
        body = []
        for at, row in enumerate(shown):
            if hidden and at == SHOWN // 2:
                body.append(f'<tr><td colspan="{len(sides)}">… {hidden:,} more rows</td></tr>')
            cells = (
                f'<td style="{STYLE.format(side)}">{_html(name, self._columns[name][row])}</td>'
                for name, side in sides.items()
            )
            body.append(f"<tr>{''.join(cells)}</tr>")
        return f"{self._above}<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _shown(self) -> list[int]:
        rows = list(range(len(self)))
        return rows if len(rows) <= SHOWN else [*rows[: SHOWN // 2], *rows[-SHOWN // 2 :]]


def picture_html(png: bytes, title: str = "", width: str = "") -> str:
    """A PNG file as an HTML image, whose pixels stay sharp."""
    data = base64.b64encode(png).decode()
    style = f"image-rendering:pixelated;{f'max-width:{width};' if width else ''}margin:0"
    return f'<img style="{style}" alt="{escape(title)}" title="{escape(title)}" src="data:image/png;base64,{data}"/>'


def _is_picture(values: Sequence[Any]) -> bool:
    return any(isinstance(value, bytes) for value in values)


def _is_number(values: Sequence[Any]) -> bool:
    return any(isinstance(value, int | float) for value in values)


def _text(name: str, value: Any) -> str:
    """A value as the text of a cell."""
    from genflow.evaluation.metrics.base import number

    if value is None or value == "":
        return NONE
    if name in DATES and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value)


def _html(name: str, value: Any) -> str:
    return picture_html(value, name, "12em") if isinstance(value, bytes) else escape(_text(name, value))
