"""The tab with what is known of a model: its evaluation by class, by keep rate, and what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from clca.app import html as render
from clca.app.context import PageContext, translator
from clca.app.i18n import Translator
from clca.evaluation.stored import StoredEvaluation, by_rate
from clca.serve.served_model import Rates, ServedModel
from clca.system.files import read_csv

_CONFUSIONS = 10


def evaluation_tab(context: PageContext, model: gr.Dropdown, tab: gr.Tab, page: gr.Blocks) -> None:
    """Lay out the tab, inside its `gr.Tab`.

    Args:
        context: The models.
        model: Where the user chooses one.
        tab: Itself: it is filled again whenever it is opened, as an evaluation may have ended meanwhile.
        page: All of it.
    """
    shown = gr.HTML(elem_id="evaluation")

    def show(name: str, request: gr.Request) -> str:
        return evaluation_html(
            translator(context, request), context.model(name), context.evaluations(context.model(name))
        )

    for trigger in (tab.select, model.input, page.load):
        trigger(show, model, shown, show_progress="hidden", api_visibility="private")


def evaluation_html(tr: Translator, served: ServedModel, stored: Sequence[StoredEvaluation]) -> str:
    """Headline, table by keep rate, table by class, and confusions of a model.

    Args:
        tr: The language.
        served: The model.
        stored: Its evaluations, of one split.
    """
    if not stored or served.run is None:
        return f"<p class=clca-note>{escape(tr('not_evaluated'))}</p>"
    mean = by_rate(served.keep_rate)[0]
    own = min(stored, key=lambda each: (each.keep_rate != served.keep_rate, abs(by_rate(each.keep_rate)[0] - mean)))
    head = tr("evaluated_on", split=own.split, images=own.images, classes=len(served.classes))
    cards = "".join(
        f"<div><p class=what>{escape(tr(key))}</p><b>{value:.1%}</b></div>"
        for key, value in (("top1", own.top1), ("top5", own.top5), ("macro", own.macro))
    )
    parts = [f"<h2>{escape(head)}</h2><div class=clca-price>{cards}</div>"]
    if own.keep_rate != served.keep_rate:
        note = tr("evaluated_near", rate=_rate(own.keep_rate), own=_rate(served.keep_rate))
        parts.append(f"<p class=clca-note>{escape(note)}</p>")
    if len(stored) > 1:
        heads = [tr("keep_rate"), tr("top1"), tr("top5"), tr("macro"), "GMACs"]
        rows = [
            [
                _rate(e.keep_rate),
                f"{e.top1:.1%} ± {e.top1_error:.1%}",
                f"{e.top5:.1%}",
                f"{e.macro:.1%}",
                f"{e.gmacs:.3g}",
            ]
            for e in stored
        ]
        parts.append(f"<h3>{escape(tr('by_rate'))}</h3>{render.table(heads, rows)}")
    # By class and confusions are of the evaluation in the head, not of whichever the run has besides.
    rows = _by_class(read_csv(own.folder / "classes.csv"))
    if rows:
        heads = [*(tr(f"column_{name}") for name in ("class", "images", "precision", "recall", "f1"))]
        parts.append(f"<h3>{escape(tr('by_class'))}</h3>{render.table(heads, rows)}")
    parts.append(_confusions(tr, read_csv(own.folder / "confusion.csv")))
    return f"<div class=clca-evaluation>{''.join(parts)}</div>"


def _by_class(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Name, photographs, precision, recall and F1 of the classes that have photographs, the lowest F1 first."""
    found = []
    for name, *numbers in lines[1:]:
        try:
            images, precision, recall, f1 = map(float, numbers)
        except ValueError:  # broken off, or another table
            continue
        if images > 0:
            found.append((f1, [name, numbers[0], *(f"{share:.1%}" for share in (precision, recall, f1))]))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _confusions(tr: Translator, lines: Sequence[Sequence[str]]) -> str:
    import numpy as np

    from clca.plots.confusion import most_confused

    names = [line[0] for line in lines[1:]]
    try:
        counts = np.array([line[1:] for line in lines[1:]], dtype=np.int64)
    except (ValueError, OverflowError):
        return ""
    if not names or counts.shape != (len(names), len(names)):  # broken off
        return ""
    items = "".join(
        f"<li>{escape(tr('confused_once' if count == 1 else 'confused', true=true, taken=taken, count=count))}</li>"
        for true, taken, count in most_confused(counts, names, _CONFUSIONS)
    )
    return f"<h3>{escape(tr('confusion'))}</h3><ul>{items}</ul>" if items else ""


def _rate(rate: Rates) -> str:
    return " ".join(f"{each:.0%}" for each in (rate if isinstance(rate, tuple) else (rate,)))
