"""Read the files that other tools write next to pictures: tables with a row for each picture, and caption files.

- `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in the source or in any folder below it: `file_name` is
  relative to the folder of the file. This is the layout of the `datasets` library, and a mistake in it is an error.
- Any other `.csv`, `.tsv`, `.jsonl` or `.parquet` file with a column that names pictures, as paths, as file names or
  without endings (Kaggle, Roboflow), and `dataset.json` of StyleGAN. A mistake in these is a reason not to read them.
- `NAME.txt` or `NAME.caption` next to `NAME.png`: one caption a line.

References:
    ImageFolder of Hugging Face: https://huggingface.co/docs/datasets/image_dataset
    dataset.json of StyleGAN: https://github.com/NVlabs/stylegan3#preparing-datasets
    _classes.csv of Roboflow: https://roboflow.com/formats/multiclass-classification-csv
"""

import csv
import io
import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from genflow.data.columns import as_captions, choose, is_missing
from genflow.data.sources.base import printable
from genflow.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
STYLEGAN = "dataset.json"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SIDECARS = (".txt", ".caption")
NAME = "file_name"
NAMES = (
    *(NAME, "filename", "file", "image", "image_id", "image_name", "image_path", "image_file", "img", "img_name"),
    *("img_path", "path", "filepath", "file_path", "imagename", "picture", "photo", "photo_id", "name", "id"),
)  # columns that name pictures
ONE_HOT = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
CLASSES = "class"  # the column that replaces one column of zeros and ones for each class
NUMBERS = re.compile(r"[-+.,0-9eE\s]+")  # a line of boxes or classes, such as YOLO's, is no caption


class Pictures:
    """The pictures of a folder, to be found by their names in tables.

    Args:
        names: the relative paths.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.known = sorted(names), frozenset(names)

    def short_names(self, folder: str) -> dict[str, str]:
        """The pictures below a folder by file name, and by path or file name without ending; empty if not unique."""
        inside = f"{folder}/" if folder else ""
        found: dict[str, str] = {}
        for name in self.names[bisect_left(self.names, inside) :]:
            if not name.startswith(inside):
                break
            base, path = os.path.basename(name), os.path.splitext(name.removeprefix(inside))[0]
            for short in {base, path, os.path.splitext(base)[0]}:
                found[short] = name if found.get(short, name) == name else ""
        return found

    def find(self, folder: str, value: str) -> str:
        """The picture with a path relative to a folder; empty if there is none."""
        for path in dict.fromkeys((value, value.replace("\\", "/"))):  # the second is written on Windows
            name = os.path.normpath(f"{folder}/{path}" if folder else path)
            if name in self.known:
                return name
        return ""


@dataclass
class Table:
    """The rows about pictures in a file, or in all caption files of one ending.

    Args:
        file: what messages call it.
        files: the files, relative to the source.
        rows: the rows of each picture that has some.
        columns: the columns, without that of the picture's name.
        notes: one-line warnings.
    """

    file: str
    files: list[str]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_table(file: str) -> bool:
    """Whether a file may be a table about pictures."""
    return file.lower().endswith(TABLES) or os.path.basename(file).lower() == STYLEGAN


def read_table(root: str, file: str, pictures: Pictures) -> Table | str:
    """Read a table about pictures.

    Args:
        root: the source.
        file: the table's path relative to it.
        pictures: the pictures of the source.

    Returns:
        The table; or why the file is not read.

    Raises:
        DataError: a metadata file is damaged, or names no picture.
    """
    if os.path.basename(file).lower() in METADATA:
        return _read_metadata(root, file, pictures)
    if "submission" in os.path.basename(file).lower():
        return "its name says that it holds answers to be filled in"
    try:
        rows = [row for _, row in read_rows(root, file)]
    except DataError as error:
        return error.message.removeprefix(f"{printable(file)} ").removeprefix("is not read: ")
    folder, columns = os.path.dirname(file), list({column: None for row in rows for column in row})
    short = pictures.short_names(folder)
    for column in choose(columns, NAMES):
        table = Table(file, [file], columns=[other for other in columns if other != column])
        for row in rows:
            value = "" if is_missing(row.get(column)) else str(row[column])
            name = pictures.find(folder, value) or pictures.find("", value) or short.get(value, "") if value else ""
            if value and not name and value in short:
                return f"several pictures have the name {value!r}"
            if name:
                table.rows.setdefault(name, []).append(row)
        if table.rows:
            missing = sum(column in row for row in rows) - sum(map(len, table.rows.values()))
            if missing:
                table.notes.append(f"{printable(file)} has {missing:,} rows about pictures that are not there")
            return _from_one_hot(table)
    return "no column of it names a picture of this folder"


def _read_metadata(root: str, file: str, pictures: Pictures) -> Table:
    table, missing, count = Table(file, [file]), list[str](), 0
    columns: dict[str, None] = {}
    for place, row in read_rows(root, file):
        if not isinstance(row.get(NAME), str):
            message = f"{printable(file)} {place} has no {NAME!r}, but {', '.join(map(repr, row)) or 'no column'}"
            raise DataError(message, f"name the picture of every row in the column {NAME!r}")
        columns |= dict.fromkeys(row)
        count += 1
        if name := pictures.find(os.path.dirname(file), row[NAME]):
            table.rows.setdefault(name, []).append(row)
        else:
            missing.append(row[NAME])
    if missing and len(missing) == count:
        raise DataError(f"{printable(file)} names no picture of its folder, first {missing[0]!r}",
                        f"write {NAME} relative to the folder of the file")  # fmt: skip
    if missing:
        message = f"{printable(file)} names {len(missing):,} pictures that are not there, first {missing[0]!r}"
        table.notes.append(message)
    if repeated := [name for name, rows in table.rows.items() if len(rows) > 1]:
        message = f"{printable(file)} names {len(repeated):,} pictures more than once, first {printable(repeated[0])}"
        table.notes.append(f"{message}; all captions of a picture are kept")
    table.columns = [column for column in columns if column != NAME]
    return table


def _from_one_hot(table: Table) -> Table | str:
    """Replace a column of zeros and ones for each class by one column of classes, if the table has such columns."""
    rows = [row for found in table.rows.values() for row in found]
    if len(table.columns) < 2 or any(str(row.get(name)) not in ONE_HOT for row in rows for name in table.columns):
        return table
    for name, found in table.rows.items():
        classes = {column for row in found for column in table.columns if ONE_HOT[str(row[column])]}
        if len(classes) != 1:
            many = "several" if classes else "none"
            return f"a picture has one class, but {printable(name)} has {many} of its {len(table.columns)} columns"
        table.rows[name] = [{CLASSES: classes.pop()}]
    table.columns = [CLASSES]
    return table


def read_rows(root: str, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its place, such as `line 3`.

    Raises:
        DataError: the table is damaged.
    """
    shown, suffix = printable(file), os.path.splitext(file)[1].lower()
    try:
        if suffix == ".parquet":
            yield from ((f"row {number}", row) for number, row in enumerate(_parquet_rows(f"{root}/{file}")))
            return
        with open(f"{root}/{file}", encoding="utf-8-sig", newline="") as opened:
            text = opened.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{shown} cannot be read: {reason}", "copy or download the file again") from error
    if suffix in (".csv", ".tsv"):
        yield from _csv_rows(shown, text, suffix)
    elif suffix == ".json":
        yield from _stylegan_rows(shown, text)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                row = _json(f"{shown} line {number}", line)
                if not isinstance(row, dict):
                    raise DataError(f"{shown} line {number} is not a JSON object", "write one JSON object a line")
                yield f"line {number}", row


def _parquet_rows(path: str) -> list[dict[str, Any]]:
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(str(error)) from error
    return rows


def _csv_rows(shown: str, text: str, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    head = text.partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else ";" if ";" in head and "," not in head else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:  # how the csv module marks cells without a column
                message = f"{shown} {place} has more cells than columns"
                raise DataError(message, "put texts with commas in double quotes")
            yield place, row
    except csv.Error as error:
        raise DataError(f"{shown} line {reader.line_num} is damaged: {error}", "save the table again") from error


def _stylegan_rows(shown: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    document = _json(shown, text)
    labels = document.get("labels") if isinstance(document, dict) else None
    if isinstance(document, dict) and labels is None and "labels" in document:
        raise DataError(f"{shown} is not read: its labels are null")
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(pairs, list) or any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
        raise DataError(f'{shown} is not read: it is not of the form {{"labels": [["a.png", 0], ...]}}')
    for number, (name, label) in enumerate(pairs):
        yield f"label {number}", {NAME: name, "label": label}


def _json(place: str, text: str) -> Any:
    try:
        document = json.loads(text)
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError as error:
        raise DataError(f"{place} has half a character, {error.object[error.start]!r}", "write it whole") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}", "write one JSON object a line") from error


def read_sidecars(root: str, pictures: Sequence[str], others: Sequence[str]) -> list[Table]:
    """The text files that have the name of a picture: a table for each ending, with the ending as its column.

    Raises:
        DataError: a file is not UTF-8, or cannot be read.
    """
    tables = {ending: Table(f"the {ending} files", [], columns=[ending]) for ending in SIDECARS}
    sidecars: dict[str, list[str]] = {}
    for file in sorted(others):
        if file.lower().endswith(SIDECARS):
            sidecars.setdefault(os.path.splitext(file)[0], []).append(file)
    empty: list[str] = []
    for picture in pictures:
        for file in [*sidecars.get(os.path.splitext(picture)[0], ()), *sidecars.get(picture, ())]:
            ending = os.path.splitext(file)[1].lower()
            tables[ending].files.append(file)
            if texts := _read_captions(root, file):
                tables[ending].rows.setdefault(picture, []).append({ending: texts})
            else:
                empty.append(file)
    if empty:
        message = f"{len(empty):,} caption files are empty or hold numbers alone, first {printable(empty[0])}"
        tables[SIDECARS[0]].notes.append(message)
    return [table for table in tables.values() if table.files]


def _read_captions(root: str, file: str) -> tuple[str, ...]:
    try:
        with open(f"{root}/{file}", encoding="utf-8-sig") as opened:
            lines = opened.read().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"the caption {printable(file)} is not UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read the caption {printable(file)}: {error.strerror}") from error
    return as_captions([line for line in lines if not NUMBERS.fullmatch(line)])
