"""Published results as data, and their comparison with the runs of a study.

`published.csv` has one row per number in the paper's table and figures (Rios et al., ICASSP 2025), for CLCA and for
the methods that it is compared with. A row that corresponds to a setting of this library contains that setting.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import pandas as pd

NINE = (
    "vit_base_patch16_224.orig_in21k",
    "vit_base_patch16_224_miil.in21k",
    "deit_base_patch16_224.fb_in1k",
    "deit3_base_patch16_224.fb_in1k",
    "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "vit_base_patch16_224.dino",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_clip_224.laion2b",
    "vit_base_patch16_224.mocov3",
)
"""The paper's backbones; by name, because `clca.models.backbones` imports torch and timm."""

DATA_TITLES = {
    "cotton80": "Cotton80",
    "soyageing": "SoyAgeing",
    "soygene": "SoyGene",
    "soyglobal": "SoyGlobal",
    "soylocal": "SoyLocal",
}

JOINED = ["published_top1", "difference", "published_method", "published_note", "approximate"]
"""The columns that `join` adds."""

_SAME_AS_NONE = ("evit", "topk", "tome")  # at keep rate 1 these keep every token, so the model is the same
VARIANTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "num_clr": (1, ("clc", "clca")),
    "clc_gap": (True, ("clc", "clca")),
    "clc_recover_at_last": (True, ("clc", "clca")),
    "cla_width": (2, ("cla", "clca")),
}
"""Settings of the two modules: the default, which is the paper's, and the arms that each applies to."""
BY_BLOCK = ("keep_rates", "locations")
"""Columns that are blank if all reduction blocks have the same rate, and are the default ones."""
_BLOCKS = "3 6 9"  # the default for the paper's backbones of twelve blocks

_NUMBERS = ("top1", "gain_low", "gain_high", "gmacs", "img_size", "keep_rate")


def published() -> pd.DataFrame:
    """Every published number.

    Returns:
        One row per number: `method`; `data` (the set's short name; None: not given; two names: over both); `kind`
        ("top-1" or "median gain"); `top1` (percent), or `gain_low` and `gain_high` (points); `gmacs` (one image);
        `img_size` (pixels); `backbone` (a name, a pattern, or None: one of `NINE`, not stated which), `reduction`,
        `keep_rate` and `arm` where it is a setting of this library, else None; `approximate` (read from a figure);
        `source`; `note`.
    """
    return _read().copy()


@functools.cache
def _read() -> pd.DataFrame:
    text = ["method", "data", "kind", "backbone", "reduction", "arm", "source", "note"]
    with (resources.files("clca.report") / "published.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype={**dict.fromkeys(text, object), "img_size": "Int64"}, keep_default_na=False,
                           na_values={name: [""] for name in _NUMBERS})  # fmt: skip
    for name in text:  # "none" is a reduction and "" is not given
        rows[name] = rows[name].where(rows[name] != "", None)
    rows["approximate"] = rows["approximate"] == "yes"
    return rows


def plain(data: str) -> pd.DataFrame:
    """Results of other methods on a set (TransFG, SIM-Trans …), for comparison; best first.

    Args:
        data: The set's short name, such as "soygene"; without published results there are no rows.
    """
    rows = _read()
    rows = rows[(rows["data"] == data) & (rows["kind"] == "top-1") & ~rows["approximate"] & (rows["arm"] != "clca")]
    return rows.sort_values(["top1", "method"], ascending=[False, True], ignore_index=True)


def join(table: pd.DataFrame) -> pd.DataFrame:
    """Add the published number to every row of the same setting on the same set at the same image size.

    Top-1 of the table is `top1_mean` (percent, from `over_seeds`) if there is one, else `top1` (0 to 1, as in the
    results table). The rows and their order stay the same. If the paper does not name the backbone, each of its nine
    matches, as stated in `published_note`. EViT at keep rate 1 and no reduction are the same model, and both match.
    Keep rates that differ between blocks, and other blocks, are other settings, whatever their mean.
    Carriers, GAP and head width must be the defaults, as in the paper's main results.

    Args:
        table: Rows with `data`, `backbone`, `reduction`, `keep_rate`, `img_size` and `arm`; without one of these
            nothing matches. `BY_BLOCK` is optional.

    Returns:
        A copy with `published_top1` (percent), `difference` (points, this study minus published), `published_method`,
        `published_note` and `approximate`.
    """
    known = [row for row in _read().to_dict("records") if row["kind"] == "top-1" and row["reduction"] and row["data"]]
    by_place: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in known:
        by_place.setdefault(_place(row), []).append(row)
    joined = table.drop(columns=[name for name in JOINED if name in table]).copy()
    matches = [_match(by_place.get(_place(row), ()), row) for row in joined.to_dict("records")]
    ours = joined["top1_mean"] if "top1_mean" in joined else 100 * joined["top1"] if "top1" in joined else float("nan")
    values = [float("nan") if row is None else row["top1"] for row in matches]
    joined["published_top1"] = pd.Series(values, index=joined.index, dtype=float)
    joined["difference"] = (ours - joined["published_top1"]).astype(float)
    for name, theirs in (("published_method", "method"), ("published_note", "note"), ("approximate", "approximate")):
        found = [None if row is None else row[theirs] for row in matches]
        joined[name] = pd.Series(found, index=joined.index, dtype=object)
    return joined


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    given, size, reduction = row.get("keep_rate"), row.get("img_size"), row.get("reduction")
    rate = None if given is None or pd.isna(given) else round(float(given), 6)
    if reduction in _SAME_AS_NONE and rate == 1.0:
        reduction = "none"
    pixels = None if size is None or pd.isna(size) else int(size)
    rates, blocks = (text if isinstance(text := row.get(name), str) else "" for name in BY_BLOCK)
    if blocks == _BLOCKS or (
        reduction == "none" and row.get("arm") == "base"
    ):  # no module or reduction acts on the blocks
        blocks = ""
    return row.get("data"), reduction, rate, rates, blocks, pixels, row.get("arm")


def _match(candidates: Any, row: dict[str, Any]) -> dict[str, Any] | None:
    """The published row of this setting, preferably one that names the backbone."""
    for name, (default, arms) in VARIANTS.items():
        value = row.get(name)
        if row.get("arm") in arms and not pd.isna(value) and value != default:
            return None
    fitting = [known for known in candidates if _fits(known["backbone"], row.get("backbone"))]
    return min(fitting, key=lambda known: (known["backbone"] is None, known["approximate"]), default=None)


def _fits(pattern: str | None, backbone: Any) -> bool:
    return backbone in NINE if pattern is None else fnmatchcase(str(backbone), pattern)
