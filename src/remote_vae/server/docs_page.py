"""The API's description for people, one page of HTML that fetches nothing and runs no script."""

import base64
import hashlib
from html import escape
from typing import Final

from remote_vae.server.browser import POLICY
from remote_vae.server.openapi import Document

STYLE: Final = """
:root { color-scheme: light dark; --back: #f5f6fa; --card: #fff; --sunk: #f0f1f7; --line: #d9dce8; --text: #1b1d29;
  --soft: #565b70; --accent: #4a4fd8; }
@media (prefers-color-scheme: dark) { :root { --back: #12131a; --card: #1b1d27; --sunk: #232634; --line: #343849;
  --text: #e9eaf2; --soft: #a7acc2; --accent: #a3a7ff; } }
body { max-width: 960px; margin: 0 auto; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; margin: 1rem 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 0.75rem 1rem;
  margin: 0.75rem 0; }
summary { cursor: pointer; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1rem; margin: 1.75rem 0 0; }
h3 { font-size: 0.85rem; margin: 1rem 0 0.3rem; color: var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: 0.85rem; }
summary code { font-weight: 600; }
b { color: var(--accent); font-size: 0.8rem; }
pre { background: var(--sunk); border-radius: 8px; padding: 0.75rem 1rem; overflow: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; }
th { color: var(--soft); }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 1rem 0.35rem 0; border-bottom: 1px solid var(--line); }
td:last-child { min-width: 14rem; }
"""
STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# The page's style and nothing else: no script runs on it, whatever a name or a text on it should hold.
PAGE_HEADERS: Final = {"content-security-policy": f"{POLICY}; style-src 'sha256-{STYLE_DIGEST}'"}

INTRO: Final = (
    "<p>Latents and pictures travel as raw bytes; the query says what they are and what is wanted. SERVER stands for "
    'the address of this server. See also <a href="./">the page</a>, <a href="openapi.json">OpenAPI</a> and '
    '<a href="models">the models with their layouts and limits</a>.</p>'
)
# By path: the rest of a curl command, for a latent of four channels. MODEL stands for the name of the first model.
EXAMPLES: Final = {
    "/{model}/decode": "'SERVER/MODEL/decode?shape=1,4,64,64&dtype=float32&do_scaling=True' \\\n  "
    "-H 'Content-Type: tensor/binary' -H 'Accept: image/png' \\\n  --data-binary @latent.bin -o picture.png",
    "/{model}/encode": "SERVER/MODEL/encode \\\n  -H 'Content-Type: image/jpeg' -H 'Accept: tensor/binary' \\\n  "
    "--data-binary @photo.jpg -o latent.bin -D head.txt",
    "/{model}": "SERVER/MODEL \\\n  -H 'Content-Type: image/jpeg' -H 'Accept: tensor/binary' \\\n"
    "  --data-binary @photo.jpg -o latent.bin",
    "/": "SERVER/ \\\n  -H 'Content-Type: image/jpeg' -H 'Accept: tensor/binary' \\\n"
    "  --data-binary @photo.jpg -o latent.bin",
}


def page(found: Document, models: list[str]) -> str:
    """The description as one page of HTML: a part to unfold for each route, then the errors, which all routes share."""
    routes = [
        (method, path, operation)
        for path, methods in sorted(found["paths"].items(), key=lambda item: ("{model}/" not in item[0], item[0]))
        for method, operation in methods.items()
    ]
    title = escape(f"{found['info']['title']} {found['info']['version']}")
    sections = "".join(_section(*route, models) for route in routes)
    errors = next(operation["responses"] for _, path, operation in routes if path == "/{model}/decode")
    rows = "".join(
        f"<tr><td>{status}</td><td>{_codes(response['description'])}</td></tr>"
        for status, response in errors.items()
        if status != "200"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{INTRO}<h2>Routes</h2>{sections}<h2>Errors</h2><p>JSON with <code>error</code>, "
        "a sentence, <code>error_type</code>, <code>detail</code> and <code>request_id</code>.</p>"
        f"<table><tr><th>status</th><th>error_type</th></tr>{rows}</table></main></body></html>"
    )


def _section(method: str, path: str, operation: Document, models: list[str]) -> str:
    opened = " open" if path.endswith("/decode") else ""
    parts = [f"<p>{escape(operation['description'])}</p>" if "description" in operation else ""]
    if method == "post" and path in EXAMPLES:
        example = escape(EXAMPLES[path].replace("MODEL", models[0]))
        parts.append(f"<h3>Example</h3><pre tabindex=0>curl --fail-with-body {example}</pre>")
    if rows := operation.get("parameters"):
        parts.append(f"<h3>Parameters</h3>{_parameters(rows)}")
    if "requestBody" in operation:
        parts.append(f"<h3>Body</h3><p>{_codes(', '.join(operation['requestBody']['content']))}</p>")
    answer = operation["responses"]["200"]
    media = f"<p>{_codes(', '.join(answer['content']))}</p>" if "content" in answer else ""
    parts.append(f"<h3>Answer</h3><p>{escape(answer['description'])}</p>{media}")
    head = f"<b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}"
    return f"<details{opened}><summary>{head}</summary>{''.join(parts)}</details>"


def _parameters(rows: list[Document]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(row['name'])}</code>{'<br>required' if row.get('required') else ''}</td>"
        f"<td>{_kind(row['schema'])}</td><td>{escape(str(row['schema'].get('default', '')))}</td>"
        f"<td>{escape(row['description'])}</td></tr>"
        for row in rows
    )
    head = "<tr><th>name</th><th>type</th><th>default</th><th>what it does</th></tr>"
    return f'<div class="scroll" tabindex=0 role="region" aria-label="Parameters"><table>{head}{lines}</table></div>'


def _kind(schema: Document) -> str:
    """A type in words: its choices, or its name with its bounds."""
    if "enum" in schema:
        return _codes(", ".join(map(str, schema["enum"])))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return escape(" ".join([" or ".join(kinds), *bounds]))


def _codes(names: str) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names.split(", "))
