"""Explain predictions: `explain(model, image)`, and measures of the faithfulness of its maps."""

from clca.explain.depths import DepthShare, depth_shares, kernel_shares
from clca.explain.explaining import explain, stages
from clca.explain.explanation import Attention, Explanation, Stage
from clca.explain.faithfulness import Curves, curves, detail_share
from clca.explain.view import View

__all__ = [
    "Attention",
    "Curves",
    "DepthShare",
    "Explanation",
    "Stage",
    "View",
    "curves",
    "depth_shares",
    "detail_share",
    "explain",
    "kernel_shares",
    "stages",
]
