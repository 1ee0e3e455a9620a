"""Limits on the size of a model, in Python and in files, which may come from untrusted sources."""

from __future__ import annotations

from typing import NamedTuple

LARGEST_SIDE = 16_384
"""Pixels of an image's side, wherever one is set."""
LARGEST_STORED_SIDE = 4096
"""The same in a model folder."""
MOST_PATCHES = 2**16
"""Patches of one image in a model folder."""


class Bounds(NamedTuple):
    """Values that an argument of timm may have.

    Attributes:
        least: The smallest in a model folder.
        most: The largest in a model folder, twice or more what timm's largest models have.
        most_in_python: The largest that `clca.create_model` takes: beyond it, an argument is a mistake.
    """

    least: float
    most: float
    most_in_python: float


SIZES = {
    "depth": Bounds(1, 128, 1024),
    "embed_dim": Bounds(1, 8192, 2**17),
    "num_heads": Bounds(1, 512, 1024),
    "mlp_ratio": Bounds(2**-10, 32, 1024),
    "in_chans": Bounds(1, 1024, 1024),
    "reg_tokens": Bounds(0, 1024, 2**13),
}
"""Of the arguments of timm that decide how large a model is."""
