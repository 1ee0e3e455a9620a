"""`Explanation`, the result of `explain`: maps over patches, their conversion to pixels, and JSON output."""

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
    """The tokens after one reduction.

    Attributes:
        block: The reduction block.
        tokens: Number of tokens after it, including prefix and carriers, before the cache recovers any.
        owner: The token that contains each patch, row by row, -1 for dropped patches, [P].
        fused: Whether each patch is in a token that fuses dropped patches (EViT), here or in an earlier stage, [P].
        fuses: Whether the reduction has such tokens.
    """

    block: int
    tokens: int
    owner: NDArray[np.int64]
    fused: NDArray[np.bool_]
    fuses: bool = False

    @property
    def gone(self) -> NDArray[np.bool_]:
        """Mask of the patches that are dropped or in a fused token, [P]."""
        return (self.owner < 0) | self.fused

    @property
    def groups(self) -> dict[int, list[int]]:
        """Tokens that contain several merged patches: token → its patches."""
        tokens, count = np.unique(self.owner[~self.gone], return_counts=True)
        return {int(token): np.flatnonzero(self.owner == token).tolist() for token in tokens[count > 1]}


@dataclass(frozen=True)
class Attention:
    """Attention of the CLS token in one block, averaged over the heads.

    Attributes:
        block: The block.
        patches: Share of each patch, [P]; the attention of a token is divided evenly among its patches.
        elsewhere: Share of tokens without patches: CLS and other prefix tokens, carriers, recovered tokens.
    """

    block: int
    patches: NDArray[np.float64]
    elsewhere: float


@dataclass(frozen=True)
class Explanation:
    """The explanation of one prediction; see `clca.explain.explain`.

    Attributes:
        image: The original image, upright.
        view: The part of it that the model sees.
        reduction, keep_rate: Settings of the model.
        top: The most likely classes with their probabilities, best first, at most five.
        target: The class to which evidence and depth shares refer.
        probability, logit: Output for the target.
        stages: One per reduction location, shallowest first; empty for a model without a reduction.
        attention: Attention in the reduction blocks and the last block, which are those that the aggregation head
            reads. Blocks with an unknown kind of attention are left out.
        evidence: Evidence for (+) and against (-) the target, [P], in units of the logit.
        baseline: Logit of the target with the mean CLS token at every depth; None without the aggregation head.
        depths: Share of each depth in `logit - baseline`; empty without the aggregation head.
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
        """The token that contains each pixel of the original, [H, W]: -1 if dropped, -2 if outside the view."""
        return self.view.to_pixels(stage.owner, UNSEEN)

    def pixels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert a map over patches [P] to one over pixels of the original [H, W]; NaN outside the view."""
        return self.view.to_pixels(values.astype(np.float64), np.nan)

    def to_json(self) -> dict[str, Any]:
        """All values as JSON types; maps as rows of patches."""
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
            "depths": [
                {"block": d.block, "logit": d.logit, "kernel": d.kernel, "average": d.average} for d in self.depths
            ],
        }
