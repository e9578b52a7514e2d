"""Tables as text."""

import pytest

from genflow.cli import console

NAMES = ["数字", "übung", "u\u0308bung", "digits", "ÜBUNG×2 — a"]


@pytest.mark.parametrize("left", [1, 2])
def test_columns_line_up(left: int) -> None:
    """Every column ends where its rule does, also where a character takes two columns of the terminal, or none."""
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
    """A cell keeps all its characters, whatever the terminal's width, and brackets are not read as markup."""
    monkeypatch.setenv("COLUMNS", "40")
    long = "x" * 200
    assert console.table(("a", "b"), [(long, "[bold]1[/bold]")]).split("\n")[2] == f"{long}  [bold]1[/bold]"
