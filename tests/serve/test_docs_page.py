"""The page for people about the endpoint: complete, and from nowhere else."""

import re

from clca.serve.docs_page import docs_page


def operation(**more: object) -> dict[str, object]:
    return {"responses": {"200": {"description": "fine"}}, **more}


def page(**paths: dict[str, object]) -> str:
    info = {"title": "clca", "version": "1", "description": "Says what is there."}
    return docs_page({"info": info, "paths": {f"/{name}": {"get": each} for name, each in paths.items()}})


def test_every_route_is_told_and_nothing_is_loaded() -> None:
    html = page(one=operation(description="First.\n\n    curl one"), two=operation())
    assert re.findall(r"<h2><code>(.*?)</code>", html) == ["GET /one", "GET /two"]
    assert "<p>First.</p><pre>curl one</pre>" in html
    assert not re.search(r"<script|<link|src=|https?://|@import|url\(", html)


def test_what_it_tells_is_text() -> None:
    parameter = {"name": "<b>", "description": "<i>", "schema": {"default": "<u>"}}
    html = page(**{"<x>": operation(description="<script>", parameters=[parameter])})
    assert not re.search(r"<(b|i|u|x|script)>", html)
    assert html.count("&lt;") == 5


def test_a_default_is_told() -> None:
    parameters = [{"name": "top_k", "description": "classes", "schema": {"default": 5}}, {"name": "x", "schema": {}}]
    html = page(one=operation(parameters=parameters))
    assert "classes (without it: 5)" in html
    assert "<td></td>" in html
