"""Tools for self-contained HTML pages: the Jinja environment, and pictures as data URIs."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import jinja2
from PIL import Image

from genflow.evaluation.metrics.base import number, share
from genflow.evaluation.metrics.likelihood import likelihood_text

TEMPLATES = Path(__file__).parent / "templates"


def template(path: Path, **tests: Callable[..., bool]) -> jinja2.Template:
    """Load a template.

    Args:
        path: the template; it may include files from its own folder and from `templates/`.
        tests: additional Jinja tests by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, TEMPLATES]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "share": share, "likelihood": likelihood_text, "columns": columns}
    environment.tests |= tests
    return environment.get_template(path.name)


def data_uri(path: Path, budget: int) -> str:
    """A PNG file as a data URI; above `budget` bytes, as WebP of the highest quality that fits, or of quality 25."""
    data, kind = path.read_bytes(), "png"
    for quality in (90, 75, 50, 25):
        if len(data) <= budget:
            break
        file = io.BytesIO()
        Image.open(path).save(file, "WEBP", quality=quality)
        data, kind = file.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def columns(count: int, most: int = 4) -> int:
    """The columns for a number of pictures: no line has a single one, and the last line has few gaps.

    Args:
        count: number of pictures.
        most: columns, if so many are possible.
    """
    if count <= most:
        return max(1, count)
    fitting = [n for n in range(most, most // 2, -1) if count % n != 1]
    more = next(n for n in range(most + 1, count + 1) if count % n != 1)
    return min(fitting, key=lambda n: -count % n, default=more)
