"""Standard streams that print every text: what the terminal's encoding lacks is replaced, not an error.

The encoding of standard output depends on the locale and on PYTHONIOENCODING. A table must not end a command with an
error after work that succeeded, because its line is not part of ISO-8859-1.
"""

import codecs
import os
import sys
import unicodedata

NONE = "—"  # a cell of a table that has no value
ERRORS = "genflow-plain"  # the name of the error handler
PLAIN = {
    "─": "-", "│": "|", "├": "|", "└": "`", "—": "-", "–": "-", "‑": "-", "×": "x", "·": "-", "…": "...", "✔": "ok",
    "✘": "NO", "→": "->", "←": "<-", "↑": "^", "↓": "v", "≥": ">=", "≤": "<=", "±": "+-", "’": "'", "‘": "'", "“": '"',
    "”": '"', "σ": "sigma", "α": "alpha", "µ": "u", "μ": "u", "ß": "ss", "æ": "ae", "ø": "o", "ł": "l",
}  # fmt: skip


def note(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """ASCII characters that look like a text; `?` for a character that has none."""
    return "".join(_plain(character) for character in text)


def _plain(character: str) -> str:
    if character.isascii():
        return character
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()  # é becomes e
    return PLAIN.get(character) or base or "?"


def prepare_streams() -> None:
    """Make the three standard streams usable, whatever the locale is and whether they are open or not.

    A closed descriptor is opened on the null device: otherwise the next file that the process opens receives the
    descriptor 1, and printed text would be written into that file.
    """
    codecs.register_error(ERRORS, _replace)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the kernel assigns the lowest free descriptor
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open until the process ends
        elif mode == "w" and hasattr(stream, "reconfigure"):  # a test may have replaced the stream
            stream.reconfigure(errors=ERRORS)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """The error handler: the plain form of the characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end
