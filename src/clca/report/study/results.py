"""The main table: top-1 of all arms in every setting, the gain of CLCA, and published results."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clca.report.published import BY_BLOCK, VARIANTS
from clca.report.study.cells import (
    ARM_TITLES,
    cell,
    column,
    cost,
    in_caption,
    intervals,
    setting_column,
    signed,
    varies,
    with_sd,
)
from clca.report.study.numbers import setting_gains
from clca.report.study.settings import ARMS, SETTING, axes_of, setting_text
from clca.report.table import ReportTable
from clca.system.tables import Column


def results_table(means: pd.DataFrame, pairs: pd.DataFrame, *, limit: int = 60) -> ReportTable:
    """Top-1 of every arm in every setting, the gain of CLCA, and published results.

    Settings that are the same in all rows appear in the caption only. If there are more rows than `limit`, those with a
    published number are shown first.

    Args:
        means: From `clca.report.study.numbers.over_seeds`.
        pairs: From `paired_gains`, CLCA against base.
        limit: Largest number of rows shown.
    """
    frame, arms = _by_setting(means, pairs)
    keys = [name for name in (*SETTING, "variant", *axes_of(frame)) if name in frame]
    varying = [name for name in keys if varies(frame, name)]
    has_published = frame[[f"{arm}_published" for arm in arms]].notna().any(axis=1)
    shown = frame.loc[sorted([*frame.index[has_published], *frame.index[~has_published]][:limit])]
    counts = {count for arm in arms for count in frame[f"{arm}_n"].dropna()}
    alike = len(counts) == 1

    columns = [(setting_column(frame, name), [cell(name, value) for value in shown[name]]) for name in varying]
    columns += [(Column(f"{ARM_TITLES[arm]} top-1", "%"), _top1(shown, arm, with_n=not alike)) for arm in arms]
    if "gain" in frame:
        columns.append((Column("gain", "points"), column(shown, "gain", signed)))
        columns.append((Column("95 % interval"), intervals(shown["gain_low"], shown["gain_high"])))
    for arm in arms:
        if frame[f"{arm}_published"].notna().any():
            columns.append((Column(f"{ARM_TITLES[arm]} published (difference)"), _published(shown, arm)))
    columns.append(_gmacs(shown, list(dict.fromkeys([*arms[:1], *arms[-1:]]))))

    same = [in_caption(name, frame[name].iloc[0]) for name in keys if name not in varying] if len(frame) else []
    caption = "Mean ± standard deviation over seeds"
    caption += f" (n = {counts.pop():.0f})." if alike else "; in brackets the number of runs."
    caption += f" All: {', '.join(part for part in same if part)}." if any(same) else ""
    caption += _GAIN_NOTE if "gain" in frame else ""
    caption += _PUBLISHED_NOTE if has_published.any() else ""
    rows = tuple(zip(*(texts for _, texts in columns), strict=True))
    headings = tuple(heading for heading, _ in columns)
    return ReportTable("Top-1 by setting", caption, headings, rows, frame, len(frame) - len(shown))


_GAIN_NOTE = (
    " Gain: CLCA minus base over runs of the same seed, with a bootstrap interval of its mean; for three seeds that is "
    "about their range, and for fewer there is none."
)
_PUBLISHED_NOTE = (
    " Published: Rios et al., ICASSP 2025; ≈ is read from a figure; where the paper does not name the backbone, its "
    "number stands beside each of its nine."
)


def _by_setting(means: pd.DataFrame, pairs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per setting with all arms. A base model, which has no modules, is repeated for each of their variants."""
    axes = axes_of(means)
    gains = setting_gains(pairs).to_dict("index")
    arms = [arm for arm in ARMS if (means["arm"] == arm).any()]
    settings = means.assign(text=setting_text(means)).to_dict("records")
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in settings:
        one["detail"] = tuple(_known(one[name]) for name in (*VARIANTS, *axes))
        places.setdefault(tuple(_known(one[name]) for name in SETTING), []).append(one)
    rows = []
    for own in places.values():
        for lead, beside in _rows(own):
            row = {name: lead[name] for name in (*SETTING, "variant", *axes)}
            for arm in arms:
                row.update({f"{arm}_{name}": beside.get(arm, {}).get(of) for name, of in _OF_ARM.items()})
            if "clca" in arms and "base" in arms:
                gain = gains.get(beside.get("clca", {}).get("text"), {})
                row.update({name: gain.get(of) for name, of in _GAIN.items()})
            rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else [*SETTING, "variant"])
    for name in frame.columns.difference([*SETTING, "variant", *axes]):
        if not name.endswith(("_approximate", "_seeds")):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return _sorted(frame.drop(columns=[name for name in (*BY_BLOCK, "variant") if (frame[name] == "").all()])), arms


_OF_ARM = {
    "top1": "top1_mean",
    "sd": "top1_sd",
    "n": "n",
    "seeds": "seeds",
    "gmacs": "gmacs",
    "images_per_second": "images_per_second",
    "published": "published_top1",
    "difference": "difference",
    "approximate": "approximate",
}
_GAIN = {"gain": "mean", "gain_low": "low", "gain_high": "high", "gain_pairs": "pairs"}


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by set and backbone; no reduction first, then each with its rates from high to low."""
    by = [name for name in (*SETTING, "variant", *axes_of(frame)) if name in frame]
    order = frame[by].assign(keep_rate=-frame["keep_rate"].astype(float))
    order["reduction"] = order["reduction"].where(order["reduction"] != "none", "")
    return frame.loc[order.sort_values(by, kind="stable").index].reset_index(drop=True)


def _rows(settings: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """The rows of settings that differ in arm and variant: each most specific one, and the other arms that match it."""
    rows: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = []
    left = sorted(settings, key=lambda one: -sum(part is not None for part in one["detail"]))
    while left:
        lead = left[0]
        beside = {one["arm"]: one for one in reversed(settings) if _agree(one["detail"], lead["detail"])}
        beside[lead["arm"]] = lead
        rows.append((lead, beside))
        left = [one for one in left if not any(one is other for other in beside.values())]
    return rows


def _agree(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(mine is None or theirs is None or mine == theirs for mine, theirs in zip(a, b, strict=True))


def _known(value: Any) -> Any:
    return None if pd.isna(value) or value == "" else value


def _top1(rows: pd.DataFrame, arm: str, *, with_n: bool) -> list[str]:
    values = zip(rows[f"{arm}_top1"], rows[f"{arm}_sd"], rows[f"{arm}_n"], strict=True)
    return [with_sd(mean, sd) + (f" ({n:.0f})" if with_n and not pd.isna(n) else "") for mean, sd, n in values]


def _published(rows: pd.DataFrame, arm: str) -> list[str]:
    values = zip(rows[f"{arm}_published"], rows[f"{arm}_difference"], rows[f"{arm}_approximate"], strict=True)
    return [
        "" if pd.isna(top1) else f"{'≈' if about is True else ''}{top1:.1f} ({signed(off)})"
        for top1, off, about in values
    ]


def _gmacs(rows: pd.DataFrame, arms: list[str]) -> tuple[Column, list[str]]:
    """GMACs of the arms with the fewest and the most modules, which differ little."""
    title = f"GMACs, {' / '.join(ARM_TITLES[arm] for arm in arms)}" if len(arms) > 1 else "GMACs"
    costs = zip(*(column(rows, f"{arm}_gmacs", cost) for arm in arms), strict=True)
    return Column(title), [" / ".join(part or "–" for part in row) if any(row) else "" for row in costs]
