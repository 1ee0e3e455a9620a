"""An explanation of one answer: its maps over patches, their way to pixels, and its numbers as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clca.explain.depths import DepthShare
from clca.explain.view import View

FORMAT = "clca-explanation-1"
UNSEEN = -2


@dataclass(frozen=True)
class Stage:
    """What is left after one reduction.

    Attributes:
        block: The reduction block.
        tokens: How many tokens it puts out, prefix and carriers included, before the cache recovers any.
        owner: The token that holds each patch, row by row, -1 where it was dropped, [P].
        fused: Whether a patch is in a token that fuses what was dropped (EViT), there or before, [P].
        fuses: Whether the reduction has such tokens.
    """

    block: int
    tokens: int
    owner: NDArray[np.int64]
    fused: NDArray[np.bool_]
    fuses: bool = False

    @property
    def gone(self) -> NDArray[np.bool_]:
        """Patches that are dropped, or fused with the dropped ones. [P]"""
        return (self.owner < 0) | self.fused

    @property
    def groups(self) -> dict[int, list[int]]:
        """Tokens that hold several merged patches: token → its patches."""
        tokens, count = np.unique(self.owner[~self.gone], return_counts=True)
        return {int(token): np.flatnonzero(self.owner == token).tolist() for token in tokens[count > 1]}


@dataclass(frozen=True)
class Attention:
    """Where the CLS token looks in one block, mean over the heads.

    Attributes:
        block: The block.
        patches: Share of each patch, [P]; a token's attention is split evenly among its patches.
        elsewhere: What goes to tokens without patches: CLS itself and the rest of the prefix, carriers, recovered ones.
    """

    block: int
    patches: NDArray[np.float64]
    elsewhere: float


@dataclass(frozen=True)
class Explanation:
    """Why a model said what it said of one image; see `clca.explain.explain`.

    Attributes:
        image: The original, upright.
        view: What the model saw of it.
        reduction, keep_rate: Of the model.
        top: The most likely classes with their probabilities, best first, at most five.
        target: The class that evidence and depth shares are for.
        probability, logit: Of the target.
        stages: One a reduction location, shallowest first; none for a model without a reduction.
        attention: Of the reduction blocks and the last, which are those that the aggregation head reads; a block whose
            attention clca does not know is left out.
        evidence: For (+) and against (-) the target, [P]; the scale is that of the logit.
        baseline: Logit of the target for the mean CLS token at every depth; None without the aggregation head.
        depths: Share of every depth in `logit - baseline`; none without the aggregation head.
    """

    image: Image.Image
    view: View
    reduction: str
    keep_rate: float | tuple[float, ...]
    top: tuple[tuple[str, float], ...]
    target: str
    probability: float
    logit: float
    stages: tuple[Stage, ...]
    attention: tuple[Attention, ...]
    evidence: NDArray[np.float64]
    baseline: float | None = None
    depths: tuple[DepthShare, ...] = ()

    def owner_pixels(self, stage: Stage) -> NDArray[np.int64]:
        """The token that holds each pixel of the original [H, W]: -1 where dropped, -2 where never seen."""
        return self.view.to_pixels(stage.owner, UNSEEN)

    def pixels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """A map over patches [P] as one over pixels of the original [H, W]; NaN where they were never seen."""
        return self.view.to_pixels(values.astype(np.float64), np.nan)

    def to_json(self) -> dict[str, Any]:
        """Every number, in JSON's types; maps as rows of patches."""
        left, top, width, height = self.view.box

        def rows(values: NDArray[Any], digits: int | None = None) -> list[list[Any]]:
            grid = values.reshape(self.view.grid).tolist()
            return grid if digits is None else [[float(f"{value:.{digits}g}") for value in row] for row in grid]

        return {
            "format": FORMAT,
            "image": {"width": self.image.width, "height": self.image.height},
            "seen": {"left": left, "top": top, "width": width, "height": height},
            "grid": {"rows": self.view.grid[0], "columns": self.view.grid[1]},
            "reduction": self.reduction,
            "keep_rate": list(self.keep_rate) if isinstance(self.keep_rate, tuple) else self.keep_rate,
            "top": [{"class": name, "probability": probability} for name, probability in self.top],
            "target": {"class": self.target, "probability": self.probability, "logit": self.logit},
            "stages": [
                {
                    "block": stage.block,
                    "tokens": stage.tokens,
                    "gone": int(stage.gone.sum()),
                    "fuses": stage.fuses,
                    "fused": np.flatnonzero(stage.fused).tolist(),
                    "groups": [{"token": token, "patches": patches} for token, patches in stage.groups.items()],
                    "owner": rows(stage.owner),
                }
                for stage in self.stages
            ],
            "attention": [
                {"block": depth.block, "elsewhere": depth.elsewhere, "patches": rows(depth.patches, 6)}
                for depth in self.attention
            ],
            "evidence": rows(self.evidence, 6),
            "baseline": self.baseline,
            "depths": [{"block": d.block, "logit": d.logit, "kernel": d.kernel} for d in self.depths],
        }
