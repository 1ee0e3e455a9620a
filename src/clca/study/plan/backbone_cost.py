"""What a backbone costs as a function of its number of tokens.

The plain ViTs that studies name most are known by their sizes. Any other backbone is built on the meta device and
measured, for which torch and timm are imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clca.models.config import ModelConfig


@dataclass(frozen=True)
class Quadratic:
    """a + b · n + c · n² multiply-accumulates for n tokens."""

    a: float
    b: float
    c: float

    def __call__(self, n: int) -> float:
        return self.a + self.b * n + self.c * n * n


@dataclass(frozen=True)
class BackboneCost:
    """Cost of the parts of a backbone for one image of a given size.

    Attributes:
        dim: C, the embedding width.
        prefix: T, the number of prefix tokens.
        attn_dim: H · d, the width of the attention.
        head_dim: d, the width of a head.
        depth: L, the number of blocks.
        patches: P, the number of patch tokens.
        embedding: Multiply-accumulates of the patch embedding.
        attention: Cost of a block up to the place where an "inside" reduction acts, or of the whole block if there is
            no such place.
        mlp: Cost of a block behind that place.
        pool: Cost of the head of the backbone before its classifier.
        classifier: Cost of its classifier per class.
        global_pool: How that head pools, as timm names it.
        patch_drop: The share of the patches that patch dropout leaves out in training.
        opaque_block: Description of a block inside which no tokens can be reduced; None if there is none.
    """

    dim: int
    prefix: int
    attn_dim: int
    head_dim: int
    depth: int
    patches: int
    embedding: int
    attention: Quadratic
    mlp: Quadratic
    pool: Quadratic
    classifier: Quadratic
    global_pool: str = "token"
    patch_drop: float = 0.0
    opaque_block: str | None = None


_TINY = {"embed_dim": 192, "num_heads": 3}
_SMALL = {"embed_dim": 384, "num_heads": 6}
_BASE = {"embed_dim": 768, "num_heads": 12}
PLAIN_VITS: dict[str, dict[str, int]] = {
    "vit_tiny_patch16_224": _TINY,
    "vit_small_patch16_224": _SMALL,
    "vit_base_patch16_224": _BASE,
    "vit_base_patch16_224.orig_in21k": _BASE,
    "vit_base_patch16_224_miil.in21k": _BASE,
    "deit_base_patch16_224.fb_in1k": _BASE,
    "deit3_base_patch16_224.fb_in1k": _BASE,
    "deit3_base_patch16_224.fb_in22k_ft_in1k": _BASE,
    "vit_base_patch16_224.dino": _BASE,
    "vit_base_patch16_224.mae": _BASE,
    "vit_base_patch16_clip_224.laion2b": _BASE,
    "vit_base_patch16_224.mocov3": _BASE,
}
"""Width and heads of ViTs with 12 blocks, an MLP four times as wide, patches of 16 and images of 224 pixels."""

_PLAIN = {"depth": 12, "patch_size": 16}
_WITHOUT_COST = frozenset({"weight_init"})
_MLP_RATIO, _CHANNELS, _SIDE = 4, 3, 224


def plain_vit_cost(config: ModelConfig) -> BackboneCost | None:
    """Cost of a plain ViT, from its sizes alone; None for any other backbone, or settings that do not fit it."""
    if config.backbone not in PLAIN_VITS:
        return None
    sizes: dict[str, Any] = {**_PLAIN, **PLAIN_VITS[config.backbone]}
    changed = {name: value for name, value in config.backbone_kwargs.items() if name not in _WITHOUT_COST}
    if not changed.keys() <= sizes.keys() or any(type(value) is not int or value < 1 for value in changed.values()):
        return None
    sizes |= changed
    dim, heads, patch = sizes["embed_dim"], sizes["num_heads"], sizes["patch_size"]
    size = config.img_size if config.img_size is not None else _SIDE
    height, width = (size, size) if isinstance(size, int) else size
    if dim % heads or height % patch or width % patch:
        return None
    patches = (height // patch) * (width // patch)
    nothing = Quadratic(0, 0, 0)
    return BackboneCost(
        dim=dim,
        prefix=1,
        attn_dim=dim,
        head_dim=dim // heads,
        depth=sizes["depth"],
        patches=patches,
        embedding=patches * dim * _CHANNELS * patch**2,
        attention=Quadratic(0, 4 * dim**2, 2 * dim),  # queries, keys, values and output; logits, and their sums
        mlp=Quadratic(0, 2 * _MLP_RATIO * dim**2, 0),
        pool=nothing,
        classifier=Quadratic(dim, 0, 0),
    )
