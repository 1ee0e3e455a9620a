"""The page: its tabs, its colours, and how it is mounted into the endpoint's application."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Mount

from clca.app.settings import PageSettings
from clca.app.upload_folder import upload_folder
from clca.models.token_reduced_vit import TokenReducedViT
from clca.serve.settings import ServeSettings

# Before Gradio is loaded: it would send usage statistics, look for its newest version, and keep its own copies.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
upload_folder()

import gradio as gr  # noqa: E402
from gradio.routes import App  # noqa: E402

from clca.app.allowlist import Allowlist  # noqa: E402
from clca.app.batch_tab import batch_tab  # noqa: E402
from clca.app.cleanup import delete_old_uploads  # noqa: E402
from clca.app.compare_tab import compare_tab  # noqa: E402
from clca.app.context import PageContext  # noqa: E402
from clca.app.evaluation_tab import evaluation_tab  # noqa: E402
from clca.app.gradio_queue import AllowedCalls, bound_sessions  # noqa: E402
from clca.app.identify_tab import identify_tab  # noqa: E402

_STYLE = Path(__file__).with_name("style.css")
# Gradio declares every page English, and a screen reader would read another language by English rules.
_LANGUAGE = """() => {
    const ours = OURS, asked = navigator.languages.map(tag => tag.toLowerCase());
    const found = asked.flatMap(tag => [tag, tag.split('-')[0]]).find(tag => ours.includes(tag));
    document.documentElement.lang = found ?? 'en';
}"""
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]


def create_app(
    models: Mapping[str, TokenReducedViT] | Sequence[str | Path],
    settings: ServeSettings | None = None,
    page: PageSettings | None = None,
) -> FastAPI:
    """The web page and the endpoint as one application: `clca.serve.create_app` with a page at /.

    Args:
        models: As for the endpoint; run folders bring their evaluations and, where the training images are here,
            examples of each class.
        settings: Of the endpoint.
        page: Of the page.

    Raises:
        ClcaError: If there is no model, one cannot be loaded, or the examples or translations cannot be read.
    """
    from clca.serve.application import create_app as create_endpoint

    settings, page = settings or ServeSettings(), page or PageSettings()
    app = create_endpoint(models, settings)
    context = PageContext(app.state.service, page)
    mount(app, build(context), context, settings, page)
    return app


def build(context: PageContext) -> gr.Blocks:
    """The page's components and what they do."""
    words = context.words.i18n
    upload_folder()  # components read where it is as they are made
    with gr.Blocks(title="clca", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(words("title"), elem_id="title")
        several = len(context.names) > 1
        model = gr.Dropdown(
            context.names, value=context.names[0], label=words("model"), visible=several, elem_id="model"
        )
        with gr.Tab(words("identify"), id="identify"):
            photo = identify_tab(context, model, blocks)
        with gr.Tab(words("compare"), id="compare") as tab:
            compare_tab(context, tab, photo)
        with gr.Tab(words("batch"), id="batch"):
            batch_tab(context, model)
        with gr.Tab(words("evaluation"), id="evaluation") as tab:
            evaluation_tab(context, model, tab, blocks)
        gr.Markdown(words("footer"), elem_id="footer")
    return blocks.queue(max_size=64, default_concurrency_limit=8)


def _theme() -> gr.themes.Base:
    """Green on stone, and darker than Gradio's own, whose small print and buttons have contrasts of 2.3 to 3.3.

    Source: WCAG 2.2, success criterion 1.4.3, which asks for 4.5.
    """
    theme = gr.themes.Default(primary_hue="green", neutral_hue="stone", font=_FONTS, font_mono=["monospace"])
    green, darker = "*primary_700", "*primary_800"
    return theme.set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill=green, button_primary_background_fill_dark=green,
        button_primary_background_fill_hover=darker, button_primary_background_fill_hover_dark=darker,
    )  # fmt: skip


def mount(app: FastAPI, blocks: gr.Blocks, context: PageContext, settings: ServeSettings, page: PageSettings) -> None:
    """Mount the page at /, behind its gate."""
    bound_sessions(blocks)
    gr.mount_gradio_app(
        app, blocks, path="/", root_path=settings.root_path or None, footer_links=[], run_history=False,
        show_error=False, ssr_mode=False, mcp_server=False, enable_monitoring=False, pwa=False, i18n=context.words.i18n,
        max_file_size=page.upload_bytes, css_paths=[_STYLE],
        theme=_theme(), js=_LANGUAGE.replace("OURS", json.dumps(list(context.words.languages))),
    )  # fmt: skip
    blocks.has_launched = True  # only then does Gradio refuse files that were not uploaded
    folder = upload_folder()
    (mounted,) = (route for route in app.router.routes if isinstance(route, Mount) and isinstance(route.app, App))
    mounted.app = Allowlist(mounted.app, folder, page, settings, AllowedCalls(blocks), context.service.drained)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app), delete_old_uploads(folder, page.keep_minutes * 60):
            yield

    app.router.lifespan_context = lifespan
