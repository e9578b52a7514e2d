"""The type of a JSON object, whose keys the function that returns it documents."""

from typing import Any

Json = dict[str, Any]
