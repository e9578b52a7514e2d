"""Prose is plain English: code, documentation and messages do not use phrases that readers have to decode."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, TESTS

GAP = r"[\s\"'#]+"  # between two words: also a line break in a comment or in adjacent string literals
PHRASES = (
    "whoever", "nobody", "somebody", "anybody", "shall", "lies", "beside", "anew", "mend(?:s|ed)?", "the other's",
    "(?:go|goes|gone) on", "(?:is|are|was) told", "has no say", "by the way that",
)  # fmt: skip
BANNED = {phrase: re.compile(rf"\b{phrase.replace(' ', GAP)}\b", re.IGNORECASE) for phrase in PHRASES}
BREAK = r"\W*\s\W*"
FIELD = r"\{[^{}\"']*\}"  # an expression in an f-string
SOURCES = ("genflow", "jobs", "benchmarks", "tests", "deploy", "docs", "pipelines")
GENERATED = (ROOT / "docs" / "results",)
KEPT = {("genflow/serving/playground/links.js", "beside")}  # the name of a field in links that users have shared
SUFFIXES = (".md", ".j2", ".html", ".js", ".yaml")
TEXT = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
Area = tuple[Path, bool]  # a folder, and whether its subfolders belong to it


def areas() -> Iterator[Area]:
    """The parts of the repository that are checked one by one: packages, folders of tests, other top-level folders."""
    yield ROOT, False
    for folder in (ROOT / name for name in SOURCES):
        split = folder.name in ("genflow", "tests")
        yield folder, not split
        if split:
            yield from ((sub, True) for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name != "__pycache__")


def files(area: Area) -> list[Path]:
    """The checked files of an area; this file contains the banned phrases and is left out."""
    folder, deep = area
    found = [path for path in sorted(folder.rglob("*") if deep else folder.iterdir()) if path.is_file()]
    kinds = (*SUFFIXES, ".py") if folder != ROOT else SUFFIXES
    return [
        path
        for path in found
        if (path.suffix in kinds or path.name == "Makefile")
        and path != Path(__file__)
        and not any(path.is_relative_to(generated) for generated in GENERATED)
    ]


def prose(path: Path) -> str:
    """The text of a file. In Python code, every other character than those of comments and strings is masked."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    masked = list(re.sub(r"\S", "\0", text))
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type in TEXT:
                start, end = (starts[line - 1] + column for line, column in (token.start, token.end))
                masked[start:end] = re.sub(FIELD, _mask, token.string) if _is_format(token) else token.string
    return "".join(masked)


def _is_format(token: tokenize.TokenInfo) -> bool:
    """Whether a token is a whole f-string, as in Python 3.11."""
    return token.type == tokenize.STRING and "f" in re.split("[\"']", token.string, maxsplit=1)[0].lower()


def _mask(match: re.Match[str]) -> str:
    return re.sub(r"\S", "\0", match[0])


def find_banned(path: Path) -> list[str]:
    """Every banned phrase of a file, as `file:line: phrase`."""
    text = prose(path)
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    banned = [pattern for phrase, pattern in BANNED.items() if (name, phrase) not in KEPT]
    matches = sorted((match.start(), match[0]) for pattern in banned for match in pattern.finditer(text))
    lines = [text.count("\n", 0, start) + 1 for start, _ in matches]
    return [f"{name}:{n}: {re.sub(BREAK, ' ', found)}" for n, (_, found) in zip(lines, matches, strict=True)]


@pytest.mark.parametrize("area", list(areas()), ids=lambda area: area[0].relative_to(ROOT).as_posix())
def test_prose_has_no_banned_phrase(area: Area) -> None:
    """No docstring, comment, message, page or document of the area uses a banned phrase."""
    found = [line for path in files(area) for line in find_banned(path)]
    assert not found, "rephrase in plain English:\n" + "\n".join(found)


def test_banned_phrases_are_found_in_text_only(tmp_path: Path) -> None:
    """Docstrings, comments and strings are searched, across line breaks; identifiers and longer words are not."""
    code = tmp_path / "code.py"
    code.write_text(
        '"""It goes\non."""\n'
        "nobody = beside_teachers = 1  # Somebody\n"
        "x = f'{nobody} is told'\n"
        "# has no\n    # say\n"
        'y = ("the othe" "r", "besides", "mender", "go", "on")\n', encoding="utf-8"
    )
    assert find_banned(code) == [
        "code.py:1: goes on", "code.py:3: Somebody", "code.py:4: is told", "code.py:5: has no say"
    ]  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("What it\nlies in\n", encoding="utf-8")
    assert find_banned(page) == ["page.md:2: lies"]


def test_every_checked_folder_exists() -> None:
    """A renamed folder does not drop out of the check."""
    assert all((ROOT / name).is_dir() for name in SOURCES)
    assert TESTS / "test_floors.py" in files((TESTS, False))
    assert ROOT / "README.md" in files((ROOT, False))
