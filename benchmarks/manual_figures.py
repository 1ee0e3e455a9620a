"""Draws the figures of docs/method.md, and prints the numbers in its text.

    python benchmarks/manual_figures.py

writes docs/images/method-*.png and .svg. Counts and GMACs are computed by `clca.cost`; the surviving patches are those
of a pretrained DINOv2 ViT-S/14, which timm downloads, or which is read from `--weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

import clca
from clca.data import Leaves
from clca.data.transforms import from_preprocess, preprocess_dict
from clca.explain.survivors import trace_survivors
from clca.plots.survivors import paint

PAPER, INK, FAINT = "#f4f2ee", "#26302a", "#6d7770"
GREEN, AMBER, BROWN, BLUE = "#4c8a58", "#d98a2b", "#9a5b10", "#2f5d8a"
SIZES = (224, 336, 448, 672, 896)
RATES = (0.7, 0.5, 0.25, 0.1)
KINDS = {
    "topk": "prunes", "evit": "prunes and fuses", "dynamicvit": "prunes, learned", "ats": "prunes, by image",
    "tome": "merges pairs", "patchmerger": "learned queries", "sit": "learned clusters", "dpcknn": "clusters",
}  # fmt: skip
SHOWN = {"topk": "Top-K", "evit": "EViT", "ats": "ATS", "tome": "ToMe", "dpcknn": "DPC-KNN"}
"""Reductions without trained parameters, which can therefore be added to a trained model."""

LEAVES: dict[str, Any] = {"cultivars": 8, "images": 125, "seed": 0, "difficulty": 0.0}
TOOTHED, VEINED = 3, 40  # test leaves
ENCODER, SIZE, KEEP = "vit_small_patch14_dinov2", 448, 0.5  # of the survivors


@dataclass
class Settings:
    """Output folder and weights."""

    out: Path = Path("docs/images")
    weights: Path | None = None
    """Weights of a DINOv2 ViT-S/14; by default timm's, from the Hugging Face hub."""
    only: tuple[str, ...] = ()
    """Names of figures to draw: resolution, architecture, tokens, survivors; by default all."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    figures: dict[str, Callable[[Settings], None]] = {
        "resolution": resolution, "architecture": architecture, "tokens": tokens, "survivors": surviving,
    }  # fmt: skip
    settings.out.mkdir(parents=True, exist_ok=True)
    for name in settings.only or figures:
        figures[name](settings)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor=PAPER, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(path)


def _plain(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=INK, labelsize=8.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def _leaf(number: int, size: int) -> NDArray[np.float64]:
    """A test leaf, values in 0 … 1, [size, size, 3]."""
    leaves = Leaves(**LEAVES, size=size, split="test", cache=False)
    return np.asarray(leaves.image(number), dtype=np.float64) / 255


# -- resolution and its cost -----------------------------------------------------------------------------------------


def resolution(settings: Settings) -> None:
    """Draw a detail at two image sizes, and the cost of the sizes."""
    arms = (("dense", "none", 1.0, False), ("EViT + CLCA, keep 25 %", "evit", 0.25, True),
            ("EViT + CLCA, keep 10 %", "evit", 0.1, True))  # fmt: skip
    costs = {name: [] for name, *_ in arms}
    table = Table("", *(f"{size} px" for size in SIZES), title="GMACs, ViT-B/16, 80 classes")
    for size in SIZES:
        vit = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=80)
        for name, reduction, rate, on in arms:
            model = clca.reduce_tokens(vit, num_classes=80, reduction=reduction, keep_rate=rate, cla=on, clc=on)
            costs[name].append(clca.cost(model).gmacs)
    for name, values in costs.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    Console().print(table)

    figure = _figure(9.8, 3.05)
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.75), left=0.02, right=0.985, top=0.84, bottom=0.16,
                               wspace=0.12)  # fmt: skip
    whole = _leaf(TOOTHED, 1792)
    corner, part = _busiest(whole), 1792 // 7
    axes = figure.add_subplot(grid[0])
    axes.imshow(whole)
    axes.add_patch(Rectangle(corner, part, part, fill=False, lw=1.6, ec=AMBER))
    axes.set_title("the leaf", size=9.5, color=INK)
    for place, size in ((1, 224), (2, 448)):
        small = Image.fromarray((whole * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        side = size // 7
        left, top = (round(value * size / 1792) for value in corner)
        axes = figure.add_subplot(grid[place])
        axes.imshow(np.asarray(small)[top : top + side, left : left + side], interpolation="nearest")
        ends = (-0.5, side - 0.5)
        lines = [[(at - 0.5, end) for end in ends] for at in range(0, side + 1, 16)]
        lines += [[(end, at - 0.5) for end in ends] for at in range(0, side + 1, 16)]
        axes.add_collection(LineCollection(lines, colors="#ffffffcc", linewidths=1.1))
        patches = (size // 16) ** 2
        axes.set_title(f"{size} px: {patches} patches", size=9.5, color=INK)
    for axes in figure.axes:
        axes.axis("off")
    axes = figure.add_subplot(grid[3])
    _plain(axes)
    for (name, values), colour, marker in zip(costs.items(), (INK, GREEN, AMBER), "oDs", strict=True):
        axes.plot(SIZES, values, color=colour, marker=marker, ms=4.5, lw=1.6, label=name)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes.set_xticks(SIZES)
    axes.set_ylim(0, 1.1 * costs["dense"][-1])
    axes.set_xlabel("side of the image, pixels", size=9, color=INK)
    axes.set_title("GMACs of one image, ViT-B/16", size=9.5, color=INK)
    place = axes.get_position()
    axes.set_position([place.x0 + 0.035, place.y0, place.width - 0.035, place.height])
    _save(figure, settings.out / "method-resolution.png")


def _busiest(image: NDArray[np.float64]) -> tuple[int, int]:
    """Corner of the window, a seventh of the side wide, with most margin: leaf and background in equal parts."""
    part = image.shape[0] // 7
    green = (image[..., 1] - image[..., 2]) > 0.12
    best, corner = 0.0, (0, 0)
    for top in range(part, 5 * part, part // 4):
        for left in range(part, 5 * part, part // 4):
            share = float(green[top : top + part, left : left + part].mean())
            if share * (1 - share) > best:
                best, corner = share * (1 - share), (left, top)
    return corner


# -- the architecture ------------------------------------------------------------------------------------------------


def architecture(settings: Settings) -> None:
    """Draw twelve blocks: the tokens between them, the cache below, the CLS tokens above."""
    size, rate, depth, at = 448, 0.25, 12, (3, 6, 9)
    vit = timm.create_model("deit_tiny_patch16_224", img_size=size, num_classes=80)
    made = clca.reduce_tokens(vit, num_classes=80, reduction="evit", keep_rate=rate)
    out = [round(count) for count in clca.cost(made).tokens_per_block]
    figure = _figure(9.8, 5.7)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-2.55, 13.15)
    axes.set_ylim(-2.1, 7.3)
    axes.axis("off")

    def write(x: float, y: float, text: str, color: str = INK, size: float = 9, **more: Any) -> None:
        axes.text(x, y, text, color=color, size=size, ha=more.pop("ha", "center"), va=more.pop("va", "center"), **more)

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str, bend: float = 0.0) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0,
                                                  "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"})  # fmt: skip

    def box(x: float, y: float, width: float, height: float, color: str, edge: str = "none") -> None:
        shape = "round,pad=0,rounding_size=0.09"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=color, ec=edge, lw=1.2))

    base, unit = 1.15, 3.0 / 28  # a bar is as high as the root of its tokens
    axes.imshow(_leaf(TOOTHED, 448), extent=(-2.4, -0.75, base + 0.5, base + 2.15), zorder=2)
    for line in np.linspace(0, 1.65, 8):
        axes.plot([-2.4, -0.75], [base + 0.5 + line] * 2, color="w", lw=0.5, alpha=0.8, zorder=3)
        axes.plot([-2.4 + line] * 2, [base + 0.5, base + 2.15], color="w", lw=0.5, alpha=0.8, zorder=3)
    axes.set_aspect("auto")
    write(-1.58, base + 2.5, f"{size} px\n{(size // 16) ** 2} patches", size=8.5)
    write(-1.58, base + 0.1, "+ CLS + CLR", size=8.5)
    arrow((-0.68, base + 1.3), (-0.42, base + 1.3), FAINT)
    cache: list[float] = []
    recovered, level, shade = 0, -0.98, AMBER
    for block in range(depth):
        x = float(block)
        count = out[block]
        height, own = unit * count**0.5, unit * (count - recovered) ** 0.5 if block not in at else unit * count**0.5
        reduces = block in at
        box(x - 0.36, 0.3, 0.72, 0.62, INK if reduces else "#e4e6df", edge=INK)
        write(x, 0.61, str(block), color="white" if reduces else INK, size=10, weight="bold" if reduces else "normal")
        axes.add_patch(Rectangle((x - 0.24, base), 0.48, own, fc=GREEN, ec="none"))
        if height > own:
            axes.add_patch(Rectangle((x - 0.24, base + own), 0.48, height - own, fc=AMBER, ec="none"))
        axes.add_patch(Rectangle((x - 0.24, base), 0.48, 0.1, fc=BLUE, ec="none"))
        write(x, base + height + 0.2, str(count), size=8.5)
        # Step 1: recover; step 2: store. Two levels distinguish what was stored before and after a recovery.
        if block in (*at, depth - 2):
            axes.plot([cache[0], x + 0.5, x + 0.5], [level, level, base + 0.4], color=shade, lw=1.4, zorder=1)
            arrow((x + 0.5, base), (x + 0.5, base + 0.55), shade)
            write(x + 0.56, 0.02, f"+{2 * len(cache)}", color=BROWN, size=8.5, ha="left", weight="bold")
            recovered, cache = 2 * len(cache), []
            level, shade = (-1.25, BROWN) if level == -0.98 else (-0.98, AMBER)
        if block < depth - 2:
            axes.plot([x, x], [0.3, -0.5], color=FAINT, lw=0.9, zorder=1)
            axes.plot([x, x], [-0.74, level], color=shade, lw=1.4, zorder=1)
            for offset, mark, fill in ((-0.1, "s", AMBER), (0.1, "o", PAPER)):
                axes.plot(x + offset, -0.62, mark, ms=6, mfc=fill, mec=BROWN, mew=1.1, zorder=3)
            cache.append(x)
        if reduces or block == depth - 1:
            arrow((x, base + height + 0.42), (x, 5.55), BLUE)
    box(2.3, 5.6, 9.5, 0.95, "#dde6ee", edge=BLUE)
    write(7.05, 6.24, "Cross-Layer Aggregation: CLS after blocks 3, 6, 9 and 11", color=BLUE, weight="bold", size=10)
    head = "BatchNorm → depth-wise convolution over the depths → BatchNorm → GELU → 1×1 convolution"
    write(7.05, 5.86, head, color=BLUE, size=8.5)
    arrow((11.8, 6.08), (12.15, 6.08), BLUE)
    write(12.2, 6.08, "classes", color=BLUE, ha="left", weight="bold")
    write(-2.45, 0.61, "blocks", ha="left", color=FAINT)
    write(-2.45, -0.62, "Cross-Layer Cache", ha="left", color=BROWN, size=8.5, weight="bold")
    write(-2.45, -0.98, "after blocks 0 to 9", ha="left", color=BROWN, size=8.5)
    axes.plot(-2.3, -1.72, "s", ms=6, mfc=AMBER, mec=BROWN)
    write(-2.1, -1.72, "average of the tokens", ha="left", size=8.5)
    axes.plot(0.55, -1.72, "o", ms=6, mfc=PAPER, mec=BROWN, mew=1.1)
    write(0.75, -1.72, "carrier CLR", ha="left", size=8.5)
    for x, colour, text in ((2.35, INK, "block that reduces"), (5.0, GREEN, "tokens (root of their number)"),
                            (8.75, AMBER, "recovered from the cache"), (12.0, BLUE, "CLS")):  # fmt: skip
        axes.add_patch(Rectangle((x, -1.82), 0.24, 0.2, fc=colour))
        write(x + 0.34, -1.72, text, ha="left", size=8.5)
    write(
        -2.45,
        7.0,
        "ViT with 12 blocks, EViT at a keep rate of 25 % and both modules",
        ha="left",
        size=12,
        weight="bold",
    )
    _save(figure, settings.out / "method-architecture.svg")


# -- token counts ----------------------------------------------------------------------------------------------------


def tokens(settings: Settings) -> None:
    """Draw the number of tokens after every block, for each reduction and keep rate."""
    vit = timm.create_model("deit_tiny_patch16_224", img_size=448, num_classes=80).eval()
    figure = _figure(9.4, 5.0)
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.86, bottom=0.1, hspace=0.36, wspace=0.08)
    shades = (GREEN, BLUE, AMBER, "#a33b2a")
    for axes, (name, kind) in zip(panels.flat, KINDS.items(), strict=True):
        _plain(axes)
        axes.axhline(785, color=FAINT, lw=1, ls=":")
        for rate, colour in zip(RATES, shades, strict=True):
            torch.manual_seed(0)
            model = clca.reduce_tokens(vit, num_classes=80, reduction=name, keep_rate=rate, cla=False, clc=False)
            counts = clca.cost(model).tokens_per_block
            print(name, rate, " ".join(f"{count:.4g}" for count in counts))
            axes.step(range(len(counts)), counts, where="mid", color=colour, lw=1.7, label=f"{rate:.0%}")
        axes.set_yscale("log", base=2)
        axes.set_ylim(1, 1100)
        axes.set_yticks([2, 8, 32, 128, 785], ["2", "8", "32", "128", "785"])
        axes.set_yticks([], minor=True)
        axes.set_xticks([0, 3, 6, 9, 11])
        axes.grid(axis="y", color=FAINT, alpha=0.15, lw=0.6)
        axes.set_title(f"{name}: {kind}", size=9.5, color=INK, loc="left")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=4, frameon=False, fontsize=9, title="keep rate",
                  title_fontsize=9, alignment="right")  # fmt: skip
    figure.text(0.06, 0.945, "Tokens after each block, CLS included", size=12, weight="bold", color=INK)
    figure.supxlabel("block", size=9, color=INK, y=0.02)
    _save(figure, settings.out / "method-tokens.svg")


# -- surviving patches -----------------------------------------------------------------------------------------------


def surviving(settings: Settings) -> None:
    """Draw one leaf after each stage of several reductions, added to one pretrained encoder."""
    recipe = preprocess_dict(SIZE)
    leaves = Leaves(**LEAVES, size=recipe["resize"], split="test", transform=from_preprocess(recipe))
    image = leaves[VEINED][0][None]
    begin = (recipe["resize"] - SIZE) // 2
    pixels = _leaf(VEINED, recipe["resize"])[begin : begin + SIZE, begin : begin + SIZE]
    columns = []
    for name, title in SHOWN.items():
        torch.manual_seed(0)  # the weights of DPC-KNN's merges come from a layer that is not trained here
        model = clca.create_model(
            ENCODER, pretrained=settings.weights is None, weights=settings.weights, img_size=SIZE, num_classes=1,
            reduction=name, keep_rate=KEEP, cla=False, clc=False,
        )  # fmt: skip
        columns.append((title, trace_survivors(model, name, image)))
    wide, high, cell = 10.15, 5.52, 1.45
    figure = _figure(wide, high)

    def place(column: float, row: float) -> Any:
        x, y = 0.2 + column * (cell + 0.16) + (0.3 if column else 0), high - 0.78 - cell - row * (cell + 0.13)
        axes = figure.add_axes((x / wide, y / high, cell / wide, cell / high))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    axes = place(0, 0)
    axes.imshow(pixels)
    axes.set_title("the leaf", size=10.5, color=INK, pad=7)
    for column, (title, found) in enumerate(columns, start=1):
        for row, stage in enumerate(found.stages):
            painted, outlines = paint(pixels, stage.owner[0], found.grid, stage.fused[0])
            axes = place(column, row)
            axes.imshow(np.clip(painted, 0, 1), interpolation="nearest")
            axes.add_collection(LineCollection(list(outlines), colors=[(0.12, 0.16, 0.14, 0.75)], linewidths=0.4))
            label = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
            axes.text(0.985, 0.015, str(stage.tokens), transform=axes.transAxes, size=8, color=INK, ha="right",
                      va="bottom", bbox=label)  # fmt: skip
            if row == 0:
                axes.set_title(title, size=10.5, color=INK, weight="bold", pad=7)
    title_text = f"What is left of the patches, {KEEP:.0%} kept at each of three blocks (numbers: tokens)"
    figure.text(0.2 / wide, 1 - 0.26 / high, title_text, size=12, weight="bold", color=INK, va="center")
    for row, stage in enumerate(columns[0][1].stages):
        y = high - 0.78 - row * (cell + 0.13) - cell / 2
        x = (0.2 + cell + 0.3) / wide
        figure.text(
            x, y / high, f"after block {stage.block}", size=9.5, color=INK, ha="center", va="center", rotation=90
        )
    _save(figure, settings.out / "method-survivors.png")


if __name__ == "__main__":
    main()
