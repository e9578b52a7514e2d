"""Helpers that several test files share. `tests/` is on the path, so that a test can import `support.small`."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
