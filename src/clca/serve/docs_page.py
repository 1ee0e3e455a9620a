"""`/docs`: what the endpoint answers, as one page that loads nothing, made from its OpenAPI description."""

from collections.abc import Iterator
from html import escape
from inspect import cleandoc
from typing import Any

_STYLE = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}body{max-width:56rem;margin:auto;padding:1rem}"
    "pre{overflow-x:auto;padding:.6rem;border:1px solid #8886;border-radius:.4rem}h2{margin-top:2.5rem}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.15rem 1.2rem .15rem 0}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML for people.

    Args:
        openapi: As `FastAPI.openapi()` returns it.
    """
    title, version = escape(openapi["info"]["title"]), escape(openapi["info"]["version"])
    routes = "".join(_route(*route) for route in _routes(openapi))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}: for programs</title><style>{_STYLE}</style><h1>{title} {version}, for programs</h1>"
        f"<p>{escape(openapi['info'].get('description', ''))} The same for programs that read it: "
        f"<a href=openapi.json>openapi.json</a>. With a token, every request carries "
        f"<code>Authorization: Bearer TOKEN</code>.</p>{routes}</html>"
    )


def _routes(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    asked = [
        (each["name"], f"{each.get('description', '')}{_default(each['schema'])}")
        for each in operation.get("parameters", ())
    ]
    answers = [(status, each["description"]) for status, each in operation["responses"].items()]
    return (
        f"<h2><code>{escape(method)} {escape(path)}</code></h2>{_text(operation.get('description', ''))}"
        f"{_table('In the address', asked)}{_table('Answers', answers)}"
    )


def _default(schema: dict[str, Any]) -> str:
    return f" (without it: {schema['default']})" if "default" in schema else ""


def _text(text: str) -> str:
    """Paragraphs; those that are indented are commands."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return "".join(
        f"<pre>{escape(cleandoc(part))}</pre>" if part.startswith("    ") else f"<p>{escape(part)}</p>"
        for part in parts
    )


def _table(head: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><th scope=row><code>{escape(name)}</code></th><td>{escape(text)}</td></tr>" for name, text in rows
    )
    return f"<h3>{escape(head)}</h3><table>{body}</table>"
