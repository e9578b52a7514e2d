"""The page at `/docs`: the OpenAPI document as HTML, with a curl command for each route. It loads no other file."""

import json
import re
from html import escape

from genflow.system.documents import Json

STYLE = """
:root { --paper: #faf9f6; --panel: #fff; --ink: #1d1f24; --soft: #5d626d; --line: #dedbd3; --accent: #1f3a93; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161b; --panel: #1c1f26; --ink: #e9e8e4; --soft: #a2a7b3;
  --line: #343945; --accent: #9db3ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 58rem; padding: 1.25rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
a { color: var(--accent); } h1 { font-size: 1.4rem; } h2 { font-size: 1.02rem; margin: 0 0 .3rem; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin: 1rem 0; }
code, pre { font: 13px/1.5 ui-monospace, monospace; } .verb { color: var(--accent); font-weight: 700; }
pre { overflow: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .8rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.what { color: var(--soft); } p { margin: .4rem 0 .7rem; }
"""


def page(openapi: Json, address: str) -> str:
    """Render the OpenAPI document as HTML.

    Args:
        openapi: the app's OpenAPI document.
        address: the base URL in the commands.
    """
    parts = [
        _operation(openapi, path, verb, operation, address)
        for path, verbs in openapi["paths"].items()
        for verb, operation in verbs.items()
    ]
    info = openapi["info"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>genflow API</title><style>{STYLE}</style></head><body>
<h1>genflow API</h1>
<p>{escape(info.get("summary", ""))} Version {escape(info["version"])}. <a href="/">Playground</a> ·
<a href="/openapi.json">openapi.json</a></p>
<p>Every error has the format <code>{{"error": {{"code", "field", "message", "hint", "request"}}}}</code>. With status
429 or 503, the header <code>Retry-After</code> gives the seconds to wait. If the server requires a key, send the header
<code>Authorization: Bearer KEY</code>.</p>
{"".join(parts)}
</body></html>
"""


def _operation(openapi: Json, path: str, verb: str, operation: Json, address: str) -> str:
    schema = _schema(openapi, operation)
    answers = {code: answer["description"] for code, answer in operation.get("responses", {}).items() if code[0] == "2"}
    said = "".join(f"<p>{_html(text)}</p>" for text in answers.values() if text != "Successful Response")
    description = _html(operation.get("description", "")).replace("\n\n", "</p><p>")
    return f"""<section><h2><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code></h2>
<p><b>{escape(operation.get("summary", ""))}.</b> {description}</p>{_fields(openapi, schema)}
<pre>{escape(_curl(path, verb, schema, address))}</pre>{said}</section>"""


def _schema(openapi: Json, operation: Json) -> Json:
    """Return the schema of the request body; {} without a body."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return _resolved(openapi, content.get("schema", {}))


def _resolved(openapi: Json, schema: Json) -> Json:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(openapi["components"]["schemas"][name]) if name else schema


def _fields(openapi: Json, schema: Json) -> str:
    if not schema.get("properties"):
        return ""
    required = schema.get("required", [])
    rows = ""
    for name, field in schema["properties"].items():
        default = "required" if name in required else f"<code>{escape(json.dumps(field.get('default')))}</code>"
        rows += f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type_name(field))}</td><td>{default}</td>"
        rows += f'<td class="what">{_html(field.get("description", ""))}</td></tr>'
    head = "<tr><th>field</th><th>type</th><th>default</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'


def _html(text: str) -> str:
    """Escape the text, and show backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _type_name(field: Json) -> str:
    """Describe a field's type and bounds."""
    if "anyOf" in field:
        return " or ".join(_type_name(each) for each in field["anyOf"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    low, high = field.get("minimum"), field.get("maximum", field.get("exclusiveMaximum"))
    if low is not None and high is not None and abs(high) < 2**31:
        return f"{field['type']} {low:g} to {high:g}"
    if field.get("type") == "array":
        most = field.get("maxItems", "any number")
        return f"list of {_type_name(field['items'])}, {field.get('minItems', 0)} to {most}"
    return str(field.get("type", "any"))


def _curl(path: str, verb: str, schema: Json, address: str) -> str:
    url = f"{address}{path.replace('{name}', 'MODEL')}"
    if verb == "get":
        return f"curl -s {url}"
    example = (schema.get("examples") or [{}])[0]
    return f"curl -s {url} -H 'Content-Type: application/json' \\\n  -d '{json.dumps(example)}'"
