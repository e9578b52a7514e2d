"""The type of a JSON object whose keys its producer documents."""

from typing import Any

Json = dict[str, Any]
