"""How the numbers of a study are written in tables and sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from clca.report.published import DATA_TITLES
from clca.system.tables import Column

ARM_TITLES = {"base": "base", "cla": "CLA", "clc": "CLC", "clca": "CLCA"}
_TITLES = {
    "data": "Set",
    "backbone": "Backbone",
    "reduction": "Reduction",
    "keep_rate": "Keep rate",
    "keep_rates": "by block",
    "locations": "Blocks",
    "img_size": "Image",
    "variant": "Modules",
}


def signed(points: float) -> str:
    """+5.2, −0.3 or 0.0."""
    shown = f"{abs(points):.1f}"
    return shown if float(shown) == 0 else f"{'+' if points > 0 else '−'}{shown}"


def p_text(p: float) -> str:
    """p = 0.031, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def varies(rows: pd.DataFrame, name: str) -> bool:
    """Whether the values of a column differ between rows."""
    return rows[name].nunique(dropna=False) > 1


def setting_column(rows: pd.DataFrame, name: str) -> Column:
    """The heading of a column of settings."""
    numbers = pd.api.types.is_numeric_dtype(rows[name])
    return Column(_TITLES.get(name) or name.removeprefix("axis."), align="right" if numbers else "left")


def cell(name: str, value: Any) -> str:
    """The text of a setting's value: Cotton80, 448 px."""
    if value is None or pd.isna(value):
        return ""
    if name == "data":
        return DATA_TITLES.get(value, str(value))
    if name == "img_size":
        return f"{value:g} px"
    if name == "variant":
        return value or "default"
    return f"{value:g}" if name == "keep_rate" else str(value)


def in_caption(name: str, value: Any) -> str:
    """The text of a setting's value with its name, for a caption: keep rate 0.1."""
    words = {"keep_rate": "keep rate", "keep_rates": "by block", "locations": "blocks"}
    text = cell(name, value)
    return f"{words[name]} {text}" if name in words and text else text


def column(rows: pd.DataFrame, name: str, shown: Callable[[Any], str]) -> list[str]:
    """The texts of a column; "" for missing values."""
    return ["" if pd.isna(value) else shown(value) for value in rows[name]]


def with_sd(mean: float, sd: float) -> str:
    """86.4 ± 1.2, or 86.4 for one run."""
    return "" if pd.isna(mean) else f"{mean:.1f}" + ("" if pd.isna(sd) else f" ± {sd:.1f}")


def means_with_sd(rows: pd.DataFrame) -> list[str]:
    """Mean and standard deviation of each row of `over_seeds`, as 86.4 ± 1.2."""
    return [with_sd(mean, sd) for mean, sd in zip(rows["top1_mean"], rows["top1_sd"], strict=True)]


def intervals(low: pd.Series, high: pd.Series) -> list[str]:
    """Each interval as +1.2 to +3.4; "" if it is missing."""
    return ["" if pd.isna(a) else f"{signed(a)} to {signed(b)}" for a, b in zip(low, high, strict=True)]


def cost(gmacs: float) -> str:
    """GMACs with three significant digits."""
    return f"{gmacs:#.3g}".rstrip(".")
