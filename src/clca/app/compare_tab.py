"""The tab that asks two models, or one at two keep rates, about the same photograph."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from clca.app import html as render
from clca.app.components import keep_rate, photograph
from clca.app.context import PageContext, error_text, translator
from clca.app.identify_tab import move_slider, stages_html


@dataclass(frozen=True)
class _Side:
    model: gr.Dropdown
    rate: gr.Slider
    price: gr.HTML
    answer: gr.HTML
    stages: gr.HTML


def compare_tab(context: PageContext, tab: gr.Tab, identified: gr.Image) -> None:
    """Lay out the tab, inside its `gr.Tab`.

    Args:
        context: The models.
        tab: Itself.
        identified: The photograph of another tab, with which this one begins.
    """
    words = context.words.i18n
    photo = photograph(words("photo"), "compare-photo")
    names = (context.names[0], context.names[min(1, len(context.names) - 1)])
    with gr.Row():
        sides = [_side(context, letter, name) for letter, name in zip(("left", "right"), names, strict=True)]

    async def compare(
        path: str | None, a: str, a_rate: float, b: str, b_rate: float, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        tr = translator(context, request)
        if path is None:
            for side in sides:
                yield {side.answer: render.waiting(tr), side.price: "", side.stages: ""}
            return
        for side, name, slider in zip(sides, (a, b), (a_rate, b_rate), strict=True):
            try:
                served, look = await context.look(name, slider, path)
                shown = await context.examples(served, look.ranked.classes)
            except Exception as error:
                yield {side.answer: render.problem(error_text(tr, error)), side.price: "", side.stages: ""}
                continue
            yield {
                side.answer: render.answer(tr, look.ranked, shown, len(served.classes), served.false_alarms),
                side.price: render.price(tr, look, context.rates(served, slider), context.evaluations(served)),
            }
            yield {side.stages: await stages_html(tr, look)}

    def take_over(theirs: str | None, own: str | None) -> Any:
        return gr.skip() if own is not None or theirs is None else theirs

    tab.select(take_over, [identified, photo], photo, show_progress="hidden", api_visibility="private")
    left, right = sides
    asked = [photo, left.model, left.rate, right.model, right.rate]
    shown_parts = [part for side in sides for part in (side.answer, side.price, side.stages)]
    gr.on(
        [photo.change, *(side.rate.input for side in sides)], compare, asked, shown_parts,
        trigger_mode="always_last", show_progress="minimal", api_visibility="private",
    )  # fmt: skip
    for side in sides:
        moved = side.model.input(
            lambda name: move_slider(context, name), side.model, side.rate, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        moved.then(  # only then does the slider show the share of the model that was chosen
            compare, asked, shown_parts, trigger_mode="always_last", show_progress="minimal", api_visibility="private"
        )


def _side(context: PageContext, letter: str, name: str) -> _Side:
    words, served = context.words.i18n, context.model(name)
    with gr.Column(min_width=300):
        model = gr.Dropdown(context.names, value=name, label=words(letter), elem_id=f"{letter}-model")
        value = context.shown_rate(served)
        if letter == "right" and len(context.names) == 1 and served.keep_rate_is_free:
            value = 1.0 if value < 1 else 0.5  # one model is of interest at two rates
        rate = keep_rate(words("keep_rate"), words("keep_rate_info"), value, served.keep_rate_is_free, f"{letter}-rate")
        price = gr.HTML(elem_id=f"{letter}-price")
        answer = gr.HTML(elem_id=f"{letter}-answer")
        stages = gr.HTML(elem_id=f"{letter}-stages")
    return _Side(model, rate, price, answer, stages)
