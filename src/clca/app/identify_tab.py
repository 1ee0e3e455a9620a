"""The tab for one photograph: answer, stages, keep rate, and what decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from clca.app import html as render
from clca.app.components import keep_rate, photograph
from clca.app.context import PageContext, error_text, new_file, translator
from clca.app.i18n import Translator
from clca.app.inference import Look
from clca.explain import Explanation
from clca.plots.explanation import draw_explanation
from clca.plots.stages import reason_pictures, stage_pictures


def identify_tab(context: PageContext, model: gr.Dropdown, page: gr.Blocks) -> gr.Image:
    """Lay out the tab, inside its `gr.Tab`.

    Args:
        context: The models.
        model: Where the user chooses one.
        page: All of it.

    Returns:
        Where the photograph is.
    """
    words = context.words.i18n
    first = context.model(None)
    with gr.Row(elem_id="identify-row"):
        with gr.Column(min_width=300, elem_id="identify-left"):
            photo = photograph(words("photo"), "photo")
            rate = keep_rate(
                words("keep_rate"), words("keep_rate_info"), context.shown_rate(first), first.keep_rate_is_free, "rate"
            )
            price = gr.HTML(elem_id="price")
        with gr.Column(min_width=300, elem_id="identify-right"):
            answer = gr.HTML(elem_id="answer")
    stages = gr.HTML(elem_id="stages")
    why = gr.Button(words("why"), visible=False, elem_id="why")
    reasons = gr.HTML(elem_id="reasons")
    figure = gr.DownloadButton(words("figure"), visible=False, elem_id="figure")  # type: ignore[arg-type]
    results = [answer, price, stages, why, reasons, figure]
    asked = _Newest()

    async def identify(
        name: str, slider: float, path: str | None, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        tr = translator(context, request)
        asked.put(request.session_hash, (name, slider, path))
        clear = {why: gr.update(visible=False), reasons: "", figure: gr.update(visible=False)}
        if path is None:
            yield {**clear, answer: render.waiting(tr), price: "", stages: ""}
            return
        try:
            served, look = await context.look(name, slider, path)
            shown = await context.examples(served, look.ranked.classes)
        except Exception as error:
            yield {**clear, answer: render.problem(error_text(tr, error)), price: "", stages: ""}
            return
        rates = context.rates(served, slider)
        yield {
            **clear,
            answer: render.answer(tr, look.ranked, shown, len(served.classes), served.false_alarms),
            price: render.price(tr, look, rates, context.evaluations(served)),
            why: gr.update(visible=True),
        }
        yield {stages: await stages_html(tr, look)}

    async def explain(name: str, slider: float, path: str | None, request: gr.Request) -> dict[Any, Any]:
        tr = translator(context, request)
        if path is None:
            return {reasons: render.problem(tr("no_photo"))}
        try:
            served = context.model(name)
            image = await context.inference.open(Path(path))
            found = await context.inference.reasons(served, context.rates(served, slider), image)
        except Exception as error:
            return {reasons: render.problem(error_text(tr, error))}
        pictures, file = await asyncio.to_thread(_draw, found)
        # What decided on an answer before would stand below the new one.
        if asked.get(request.session_hash) != (name, slider, path):
            return {reasons: gr.skip()}
        html = render.figures(tr("reasons"), pictures, _captions(tr, found)) + render.depths(tr, found)
        return {reasons: html, figure: gr.update(value=str(file), visible=True)}

    inputs = [model, rate, photo]
    why.click(
        explain, inputs, results, trigger_mode="once", show_progress_on=why, api_visibility="private",
        concurrency_limit=1,  # so that an answer waits for one of them at most
    )  # fmt: skip
    gr.on(
        [photo.change, rate.input], identify, inputs, results, trigger_mode="always_last",
        show_progress="minimal", api_visibility="private",
    )  # fmt: skip
    moved = model.input(
        lambda name: move_slider(context, name), model, rate, show_progress="hidden", api_visibility="private"
    )
    moved.then(  # only then does the slider show the share of the model that was chosen
        identify, inputs, results, trigger_mode="always_last", show_progress="minimal", api_visibility="private"
    )

    def begin(request: gr.Request) -> str:
        return render.waiting(translator(context, request))

    page.load(begin, None, answer, show_progress="hidden", api_visibility="private")
    return photo


class _Newest:
    """What each session of a page asked for last; of the thousand that asked last."""

    def __init__(self) -> None:
        self._of: dict[str | None, tuple[Any, ...]] = {}

    def put(self, session: str | None, what: tuple[Any, ...]) -> None:
        self._of.pop(session, None)
        self._of[session] = what
        if len(self._of) > 1000:
            del self._of[next(iter(self._of))]

    def get(self, session: str | None) -> tuple[Any, ...] | None:
        return self._of.get(session)


async def stages_html(tr: Translator, look: Look) -> str:
    """What each reduction left, as pictures; empty without reductions."""
    if not look.stages:
        return ""
    pictures = await asyncio.to_thread(stage_pictures, look.image, look.view, look.stages)
    captions = [
        tr("stage", block=s.block, tokens=s.tokens, left=int((~s.gone).sum()), all=len(s.gone)) for s in look.stages
    ]
    return render.figures(tr("stages"), pictures, captions)


def move_slider(context: PageContext, name: str) -> Any:
    """An update of a slider for a model that was chosen."""
    served = context.model(name)
    key = "keep_rate_info" if served.keep_rate_is_free else "keep_rate_fixed"
    return gr.update(
        value=context.shown_rate(served), interactive=served.keep_rate_is_free, info=context.words.i18n(key)
    )


def _draw(found: Explanation) -> tuple[list[Any], Path]:
    file = new_file("explanation.png")
    draw_explanation(file, found)
    return reason_pictures(found), file


def _captions(tr: Translator, found: Explanation) -> list[str]:
    looks = [tr("attention", block=a.block, share=f"{1 - a.elsewhere:.0%}") for a in found.attention]
    return [tr("evidence", name=found.target), *looks]
