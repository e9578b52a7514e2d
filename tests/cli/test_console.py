"""Tables as text."""

import pytest

from genflow.cli import console

NAMES = ["数字", "übung", "u\u0308bung", "digits", "ÜBUNG×2 — a"]


@pytest.mark.parametrize("left", [1, 2])
def test_columns_line_up(left: int) -> None:
    """Columns are aligned even if a character needs two terminal columns or none."""
    table = console.table(("name", "rows"), [(name, str(10**i)) for i, name in enumerate(NAMES)], left=left)
    head, rule, *rows = table.split("\n")
    ends = console.width(rule.partition("  ")[0])
    assert console.width(head.partition("rows")[0].rstrip(" ")) <= ends
    for name, row in zip(NAMES, rows, strict=True):
        number = row[len(name) :]
        assert row.startswith(name)
        if left == 2:
            assert console.width(name) + len(number) - len(number.lstrip()) == ends + 2
        else:
            assert console.width(row) == console.width(rule)


def test_a_table_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell keeps all its characters on a narrow terminal, and brackets are not parsed as markup."""
    monkeypatch.setenv("COLUMNS", "40")
    long = "x" * 200
    assert console.table(("a", "b"), [(long, "[bold]1[/bold]")]).split("\n")[2] == f"{long}  [bold]1[/bold]"
