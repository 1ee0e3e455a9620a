"""What the page shows of an answer, as HTML: names are escaped, pictures are data, nothing else is loaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from clca.app.i18n import Translator
from clca.app.inference import Look
from clca.evaluation.stored import StoredEvaluation
from clca.explain import DepthShare, Explanation
from clca.serve.served_model import Rates
from clca.serve.service import Ranked


def answer(
    tr: Translator,
    ranked: Ranked,
    examples: Mapping[str, Sequence[str]],
    classes: int,
    false_alarms: float | None = None,
) -> str:
    """The most likely classes with bars and example pictures, or that it is none of them; said to screen readers.

    Args:
        tr: The words.
        ranked: The answer.
        examples: Addresses of pictures of each class.
        classes: How many the model knows.
        false_alarms: Share of known photographs that are taken for none of the classes; None if that is not known.
    """
    first, probability = escape(ranked.classes[0]), f"{ranked.probabilities[0]:.0%}"
    rows = "".join(
        _row(tr, name, share, examples.get(name, ()))
        for name, share in zip(ranked.classes, ranked.probabilities, strict=True)
    )
    missing = "" if any(examples.values()) else f"<p class=note>{escape(tr('no_examples'))}</p>"
    if ranked.is_unfamiliar:
        said = f"<strong>{escape(tr('none_of_these'))}</strong>"
        about = f"<p class=warning>{escape(tr('looks_like_none', count=classes))}</p>"
        return (
            f'<div class="clca-answer unfamiliar"><p class=said role=status aria-live=polite>{said}</p>{about}'
            f"<ol>{rows}</ol>{missing}</div>"
        )
    note = tr("only_knows", count=classes)
    if ranked.is_unfamiliar is False and false_alarms is not None:
        note = tr("familiar", share=f"{false_alarms:.0%}")
    return (
        f"<div class=clca-answer><p class=said role=status aria-live=polite><strong>{first}</strong> "
        f"<span>{probability}</span></p><ol>{rows}</ol>{missing}<p class=note>{escape(note)}</p></div>"
    )


def _row(tr: Translator, name: str, share: float, pictures: Sequence[str]) -> str:
    label = escape(tr("example", name=name), quote=True)
    images = "".join(f'<img src="{escape(address, quote=True)}" alt="{label}">' for address in pictures)
    return (
        f"<li><div class=name><span>{escape(name)}</span><span>{escape(_percent(share))}</span></div>"
        f'<div class=bar><i style="width:{100 * share:.2f}%"></i></div>'
        f"<div class=examples>{images}</div></li>"
    )


def waiting(tr: Translator) -> str:
    """In place of an answer, before there is a photograph."""
    return f"<div class=clca-answer><p class=empty>{escape(tr('no_photo_yet'))}</p></div>"


def price(tr: Translator, look: Look, rates: Rates, stored: Sequence[StoredEvaluation]) -> str:
    """Accuracy, GMACs and time at a keep rate, side by side."""
    accuracy, about = _accuracy(tr, rates, stored)
    share = look.price.share
    cost = tr("cost_full") if share > 0.9995 else tr("cost_share", share=f"{share:.0%}")
    cells = (
        (tr("accuracy"), accuracy, about),
        (tr("cost"), f"{look.price.gmacs:.3g} GMACs", cost),
        (tr("time"), f"{look.milliseconds:.3g} ms", tr("time_here")),
    )
    return "<div class=clca-price>" + "".join(map(_cell, *zip(*cells, strict=True))) + "</div>"


def _cell(name: str, value: str, about: str) -> str:
    return f"<div><p class=what>{escape(name)}</p><b>{escape(value)}</b><p>{escape(about)}</p></div>"


def _accuracy(tr: Translator, rate: Rates, stored: Sequence[StoredEvaluation]) -> tuple[str, str]:
    """Of the evaluation at this very rate; else of those next to it."""
    here = [each for each in stored if _same(each.keep_rate, rate)]
    if here:
        return f"{here[0].top1:.1%}", tr("accuracy_of", images=here[0].images, split=here[0].split)
    near: list[tuple[float, float]] = []
    if not isinstance(rate, tuple):
        known = [(each.keep_rate, each.top1) for each in stored if not isinstance(each.keep_rate, tuple)]
        near = [*[(at, top1) for at, top1 in known if at < rate][-1:], *[k for k in known if k[0] > rate][:1]]
    if not near:
        return "–", f"{tr('accuracy_unknown')}: {tr('accuracy_how')}"
    accuracy = " – ".join(f"{top1:.1%}" for _, top1 in near)
    if len(near) == 2:
        return accuracy, tr("accuracy_between", low=f"{near[0][0]:.0%}", high=f"{near[1][0]:.0%}")
    return "–", tr("accuracy_near", rate=f"{near[0][0]:.0%}", accuracy=accuracy)


def _same(one: Rates, other: Rates) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        return one == other
    return abs(one - other) < 1e-6


def depths(tr: Translator, explanation: Explanation) -> str:
    """Bars of what each depth adds; empty without the aggregation head."""
    if not explanation.depths:
        return ""
    reach = max(max(abs(depth.logit) for depth in explanation.depths), 1e-9)
    rows = "".join(
        f"<li><div class=name><span>{escape(_depth_name(tr, depth))}</span>"
        f"<span>{depth.logit:+.2f}</span></div>"
        f'<div class="bar {"for" if depth.logit > 0 else "against"}">'
        f'<i style="width:{100 * abs(depth.logit) / reach:.2f}%"></i></div></li>'
        for depth in explanation.depths
    )
    return f"<div class=clca-answer><h2>{escape(tr('depths', name=explanation.target))}</h2><ol>{rows}</ol></div>"


def _depth_name(tr: Translator, depth: DepthShare) -> str:
    return tr("depth_average" if depth.average else "depth", block=depth.block)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def figures(title: str, pictures: Sequence[Image.Image], captions: Sequence[str]) -> str:
    """Pictures with captions below, as many side by side as fit."""
    shown = "".join(
        f'<figure><img src="{address_of(picture)}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for picture, caption in zip(pictures, captions, strict=True)
    )
    return f"<section><h2>{escape(title)}</h2><div class=clca-figures>{shown}</div></section>"


def address_of(picture: Image.Image, side: int = 480) -> str:
    """A picture as a data: address, its longer side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def problem(text: str) -> str:
    """In place of an answer, where there is none; said to screen readers at once."""
    return f"<div class=clca-answer><p class=empty role=alert>{escape(text)}</p></div>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows below heads; the last cell of a row that is shorter goes over the rest."""
    top = "".join(f"<th scope=col>{escape(head)}</th>" for head in heads)
    body = []
    for row in rows:
        cells = [f"<td>{escape(str(cell))}</td>" for cell in row]
        if len(row) < len(heads):
            cells[-1] = f"<td class=wide colspan={len(heads) - len(row) + 1}>{escape(str(row[-1]))}</td>"
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<div class=clca-table tabindex=0><table><thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
