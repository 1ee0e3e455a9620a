"""The tab for many photographs: files and zips in, a table out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from clca.app import components as parts
from clca.app import html as render
from clca.app.batch import BatchLimits, Progress, Row, classify
from clca.app.batch_table import summary, write_csv
from clca.app.context import PageContext, error_text, new_file, translator
from clca.app.i18n import Translator
from clca.app.identify_tab import move_slider
from clca.app.zip_reader import ArchiveLimits
from clca.system.forecast import seconds_left

_SHOWN = 200


def batch_tab(context: PageContext, model: gr.Dropdown) -> None:
    """Lay out the tab, inside its `gr.Tab`.

    Args:
        context: The models.
        model: Where the user chooses one.
    """
    words, first = context.words.i18n, context.model(None)
    most = context.settings.batch_files
    limits = BatchLimits(files=most, archive=ArchiveLimits(files=most, entries=2 * most + 1000))
    files = parts.files(words("files"), "files")
    rate = parts.keep_rate(
        words("keep_rate"), words("keep_rate_info"), context.shown_rate(first), first.keep_rate_is_free, "batch-rate"
    )
    with gr.Row():
        start = gr.Button(words("identify_all"), variant="primary", elem_id="identify-all")
        stop = gr.Button(words("stop"), visible=False, elem_id="stop")
    state = gr.HTML(elem_id="batch-state")
    table = gr.HTML(elem_id="batch-table")
    download = gr.DownloadButton(
        words("download"),  # type: ignore[arg-type]
        visible=False,
        elem_id="download",
        variant="primary",
    )

    running: dict[str | None, asyncio.Event] = {}  # by page; set where it is to be stopped

    async def identify_all(
        name: str, slider: float, chosen: list[tuple[str, Path]], request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        tr = translator(context, request)
        if not chosen:
            yield {state: render.problem(tr("no_files"))}
            return
        yield {start: _working(True), stop: _working(False), download: gr.update(visible=False), table: "", state: ""}
        rows: list[Row] = []
        total = 0
        began = time.monotonic()
        stopping = running[request.session_hash] = asyncio.Event()
        try:
            served = context.model(name)
            answers = classify(context.service, served, context.rates(served, slider), chosen, limits)
            async with aclosing(answers):  # so that it ends with the page, not with the garbage collection
                async for step in _until(stopping, answers):
                    rows.extend(step.rows)
                    total = step.total
                    shown = progress(tr, step.done, step.total, time.monotonic() - began)
                    yield {state: shown, table: rows_html(tr, rows)}
        except Exception as error:
            yield {state: render.problem(error_text(tr, error, "error_batch"))}
        finally:
            running.pop(request.session_hash, None)
        update: dict[Any, Any] = {start: _working(False), stop: _working(True)}
        if rows:
            file = new_file("answers.csv")
            write_csv(rows, file)
            counts, seconds = summary(rows), f"{time.monotonic() - began:.1f}"
            text = tr("batch_done", answered=counts["answered"], refused=counts["refused"], seconds=seconds)
            if len(rows) < total:
                text = f"{tr('batch_progress', done=len(rows), total=total)} · {text}"
            update |= {download: gr.update(value=str(file), visible=True), state: f"<p role=status>{escape(text)}</p>"}
        yield update

    def stop_it(request: gr.Request) -> Any:
        if (event := running.get(request.session_hash)) is not None:
            event.set()
        return _working(True)

    start.click(
        identify_all, [model, rate, files], [start, stop, state, table, download], trigger_mode="once",
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    # Not cancelled: what has been answered is still to be saved.
    stop.click(stop_it, None, stop, show_progress="hidden", concurrency_limit=None, api_visibility="private")
    model.input(lambda name: move_slider(context, name), model, rate, show_progress="hidden", api_visibility="private")


async def _until(stopping: asyncio.Event, answers: AsyncGenerator[Progress, None]) -> AsyncIterator[Progress]:
    """The steps of a batch, up to its end or until it is to be stopped, however long the next one takes."""
    stopped = asyncio.ensure_future(stopping.wait())
    step: asyncio.Future[Progress | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(answers, None))
            await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done() or (found := step.result()) is None:
                return
            yield found
    finally:
        waiting = [each for each in (stopped, step) if each is not None]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def progress(tr: Translator, done: int, total: int, seconds: float) -> str:
    """A bar with the count, the rate and, once it can be foreseen, the time left."""
    left = seconds_left(done, total, seconds, equal_units=True)
    text = f"{tr('batch_progress', done=done, total=total)} · {done / max(seconds, 1e-6):.1f}/s"
    text += "" if left is None else f" · {_clock(left)}"
    bar = f'<progress value="{done}" max="{max(total, 1)}" aria-label="{escape(text, quote=True)}"></progress>'
    return f"<div class=clca-progress>{bar}<span>{escape(text)}</span></div>"


def rows_html(tr: Translator, rows: list[Row]) -> str:
    """The first rows as a table; the file has all."""
    heads = [tr(f"column_{name}") for name in ("file", "class", "probability", "second", "third")]
    body = []
    for row in rows[:_SHOWN]:
        if row.error is not None:
            body.append([row.name, row.error.message])
            continue
        if row.is_unfamiliar:
            body.append([row.name, tr("none_of_these"), ""])
            continue
        others = [f"{n} {p:.0%}" for n, p in zip(row.classes[1:3], row.probabilities[1:3], strict=True)]
        body.append([row.name, row.classes[0], f"{row.probabilities[0]:.1%}", *others])
    note = tr("batch_more", shown=_SHOWN, total=len(rows)) if len(rows) > _SHOWN else ""
    return render.table(heads, body) + f"<p class=clca-note>{escape(note)}</p>"


def _working(hides: bool) -> Any:
    return gr.update(visible=not hides)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
