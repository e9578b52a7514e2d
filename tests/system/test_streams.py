"""Standard streams print every text, in every encoding, and open or closed."""

import os
import subprocess
import sys

import pytest
from support import ROOT

from genflow.system.streams import plain

PROGRAM = """
import sys
from genflow.system.streams import prepare_streams
prepare_streams()
print("─ × é — 数 \\udcff", file=sys.stdout)
"""


def printed(encoding: str, program: str = PROGRAM) -> bytes:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    return subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("latin-1", "- × é - ? ?"), ("ascii", "- x e - ? ?"), ("utf-8", "─ × é — 数 ?")],
)
def test_what_an_encoding_lacks_is_replaced(encoding: str, text: str) -> None:
    """A character that the encoding lacks is printed as ASCII that looks like it."""
    assert printed(encoding).decode(encoding).rstrip("\n") == text


def test_a_closed_standard_output_is_no_file_of_the_program() -> None:
    """With standard output closed, a file that is opened later does not receive the printed text."""
    code = "import tempfile; from genflow.system.streams import prepare_streams; prepare_streams(); print('x')\n"
    code += "assert tempfile.TemporaryFile().fileno() > 2"
    command = ["sh", "-c", f'"{sys.executable}" -c "$0" >&-', code]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_a_plain_text_is_ascii() -> None:
    """The table's rule and the marks of `doctor` have plain forms."""
    assert plain("✔ ─·× …") == "ok --x ..."
