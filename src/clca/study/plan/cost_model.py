"""What a model will cost, from its settings alone: the plan of a study prices thousands of models without making them.

`clca.cost` makes the model and counts while it runs; that takes half a second. Here a backbone is measured once, on the
meta device, and every model on it is then a walk over its blocks with a number of tokens in place of tensors. The
counts are those of `clca.cost`, except for a reduction whose number of tokens depends on the image (ATS).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from clca.errors import ClcaError
from clca.models.config import ModelConfig, validated
from clca.models.cost import flop_counter
from clca.reductions import KeepSchedule, TokenState, reduction_class
from clca.study.plan.reduction_costs import REDUCED, Widths, rule_of


def price(config: ModelConfig, num_classes: int) -> float:
    """GMACs of one image in evaluation, as `clca.cost` counts them for the method (`Cost.gmacs`).

    For ATS, which keeps fewer tokens of some images than of others, this is what an image costs at most. A reduction
    that another package registered is made and measured by `clca.cost`, once for each of its settings.

    Args:
        config: The model; its own `num_classes` is not read.
        num_classes: K; 0 for a model without a classifier.

    Raises:
        ClcaError: If no such model can be made, as `clca.create_model` says it.
    """
    return _price(_Asked.about(config, num_classes, training=False))


def training_gmacs(config: ModelConfig, num_classes: int) -> float:
    """GMACs of one image in one training step: three times the forward pass, of which the backward pass is two.

    The forward pass is that of training: DynamicViT masks tokens there and removes none, so that every block runs on
    all of them (METHOD section 4), and patch dropout, where the backbone has it, leaves patches out. All else costs
    what it does in evaluation; what the backward pass saves where nothing learns is not subtracted.

    Args:
        config: The model; its own `num_classes` is not read.
        num_classes: K.

    Raises:
        ClcaError: If no such model can be made, as `clca.create_model` says it.
    """
    return 3 * _price(_Asked.about(config, num_classes, training=True))


@dataclass(frozen=True)
class _Asked:
    """A question that can be asked again: settings with a dictionary among them have no hash of their own."""

    key: tuple[Any, ...]
    config: ModelConfig = field(compare=False)
    num_classes: int = field(compare=False)
    training: bool = field(compare=False)

    @classmethod
    def about(cls, config: ModelConfig, num_classes: int, training: bool) -> _Asked:
        settings = [getattr(config, name) for name in _HASHABLE]
        key = (*settings, _as_key(config.backbone_kwargs), reduction_class(config.reduction), num_classes, training)
        return cls(key, config, num_classes, training)


_HASHABLE = sorted(set(ModelConfig.model_fields) - {"backbone_kwargs", "num_classes"})


def _as_key(kwargs: dict[str, Any]) -> str:
    return repr(sorted(kwargs.items())) if kwargs else ""


@cache
def _price(asked: _Asked) -> float:
    config, reduction = asked.config, reduction_class(asked.config.reduction)
    if asked.num_classes < 0:
        raise ClcaError(f"num_classes = {asked.num_classes}: a model has 0 classes or more")
    if reduction is None or reduction in REDUCED:
        body = _body(_Named((_variant(config.backbone), _as_key(config.backbone_kwargs)), config))
        walk = _walk_of(config, body) if body is not None else None
        if walk is not None:
            return walk.macs(asked.num_classes, asked.training) / 1e9
    return _measured(config, asked.num_classes)


# -- the backbone, measured once -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quadratic:
    """a + b · n + c · n², what a block does with n tokens."""

    a: float
    b: float
    c: float

    def __call__(self, n: int) -> float:
        return self.a + self.b * n + self.c * n * n


@dataclass(frozen=True, eq=False)
class _Body:
    """A backbone, as far as its cost goes.

    Attributes:
        widths: Its sizes.
        depth: Number of blocks, L.
        splits: Whether a reduction can act between attention and MLP.
        attend: A block's multiply-accumulates up to the place where an "inside" reduction acts, or all of them.
        feed: Those behind that place.
        pool: What the backbone's own head does before its classifier.
        classify: What its classifier does for each class.
        global_pool: How the head pools.
        dropout: The share of the patches that patch dropout leaves out in training.
        model: The model on the meta device, for its patch embedding.
    """

    widths: Widths
    depth: int
    splits: bool
    attend: _Quadratic
    feed: _Quadratic
    pool: _Quadratic
    classify: _Quadratic
    global_pool: str
    dropout: float
    model: Any


@dataclass(frozen=True)
class _Named:
    """A backbone and its settings, with a hash."""

    key: tuple[Any, ...]
    config: ModelConfig = field(compare=False)


@cache
def _variant(backbone: str) -> tuple[Any, ...]:
    """What of a backbone's name decides its shape: most pretrained tags of an architecture differ in weights alone.

    Raises:
        ClcaError: If there is no such backbone.
    """
    import timm

    from clca.models.backbones import resolve

    architecture = resolve(backbone).architecture
    cfg = timm.get_pretrained_cfg(architecture)
    return architecture.partition(".")[0], *(getattr(cfg, name, None) for name in ("input_size", "fixed_input_size"))


@cache
def _body(named: _Named) -> _Body | None:
    """The backbone alone; None if it cannot be made, or its blocks are not what is understood here.

    Not by way of `clca.models.factory`, which makes a backbone twice and draws its weights: of what fails
    here, it says why.
    """
    import timm

    from clca.kernels.dispatch import can_split
    from clca.models.backbones import check_architecture, resolve
    from clca.models.block import attention_branch, mlp_branch
    from clca.models.token_reduced_vit import TokenReducedViT

    name, kwargs = named.config.backbone, named.config.backbone_kwargs
    config = validated(backbone=name, backbone_kwargs=kwargs, num_classes=1, cla=False, clc=False)
    try:
        source = resolve(name)
        if kwargs:
            check_architecture(source)  # settings do not make a backbone fit
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vit: Any = timm.create_model(source.architecture, **{"weight_init": "skip", **kwargs, "num_classes": 1})
            model = TokenReducedViT(vit, config).eval().requires_grad_(False)
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None
    block: Any = model.blocks[0]  # the others are like it
    prefix, dim = model.num_prefix_tokens, model.embed_dim
    whole = all(can_split(each) for each in model.blocks)
    attend = _fitted(lambda x: attention_branch(block, x)[0] if whole else block(x), prefix, dim)
    feed = _fitted(lambda x: mlp_branch(block, x) if whole else x, prefix, dim)
    pool = _fitted(lambda x: model.forward_head(x, pre_logits=True), prefix, dim)
    head = _fitted(model.forward_head, prefix, dim)
    if attend is None or feed is None or pool is None or head is None:
        return None
    return _Body(
        widths=Widths(
            dim=dim,
            prefix=prefix,
            attn_dim=block.attn.num_heads * block.attn.head_dim if whole else 0,
            head_dim=block.attn.head_dim if whole else 0,
        ),
        depth=len(model.blocks),
        splits=whole,
        attend=attend,
        feed=feed,
        pool=pool,
        classify=_Quadratic(head.a - pool.a, head.b - pool.b, head.c - pool.c),
        global_pool=model.global_pool,
        dropout=float(getattr(model.patch_drop, "prob", 0.0)),
        model=model,
    )


_STEP = 8


def _fitted(run: Callable[[torch.Tensor], object], prefix: int, dim: int) -> _Quadratic | None:
    """The quadratic through the counts at three lengths; None if a fourth is not on it."""
    lengths = [prefix + _STEP * i for i in (1, 2, 3, 4)]
    f1, f2, f3, f4 = (_macs(run, torch.empty(1, n, dim, device="meta")) for n in lengths)
    c = (f3 - 2 * f2 + f1) / (2 * _STEP**2)
    b = (f2 - f1) / _STEP - c * (lengths[0] + lengths[1])
    fitted = _Quadratic(f1 - b * lengths[0] - c * lengths[0] ** 2, b, c)
    return fitted if fitted(lengths[3]) == f4 else None


def _macs(run: Callable[[torch.Tensor], object], x: torch.Tensor) -> int:
    counter = flop_counter()
    with torch.no_grad(), counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(x)
    return counter.get_total_flops() // 2


@cache
def _embedding(body: _Body, size: tuple[int, int]) -> tuple[int, int]:
    """Multiply-accumulates of the patch embedding of an image of that size, and P."""
    patch_embed: nn.Module = copy.copy(body.model.patch_embed)
    if size != tuple(body.model.patch_embed.img_size):
        patch_embed.set_input_size(img_size=size)  # type: ignore[operator]
    patches: list[torch.Tensor] = []
    macs = _macs(lambda x: patches.append(patch_embed(x)), torch.empty(1, body.model.in_chans, *size, device="meta"))
    return macs, patches[0].numel() // body.widths.dim


# -- the walk over the blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walk:
    """One model, as a walk over its blocks.

    Attributes:
        body: Its backbone.
        config: Its settings.
        locations: Reduction blocks.
        recover_at: Blocks after which the cache returns tokens.
        size: Height and width of the image in pixels.
    """

    body: _Body
    config: ModelConfig
    locations: tuple[int, ...]
    recover_at: tuple[int, ...]
    size: tuple[int, int]

    def macs(self, num_classes: int, training: bool) -> float:
        """Multiply-accumulates of one forward pass of one image."""
        body, config = self.body, self.config
        own = body.widths
        carriers = config.num_clr if config.clc else 0
        macs, patches = _embedding(body, self.size)
        state = TokenState(
            prefix=own.prefix,
            num_patches=patches,
            schedule=KeepSchedule(config.keep_rate, len(self.locations)),
            appended=carriers,
            cache_on=config.clc,
            training=training,
        )
        cls = reduction_class(config.reduction)
        total = float(macs)
        dropped = training and body.dropout > 0
        n = own.prefix + (max(1, int(patches * (1 - body.dropout))) if dropped else patches) + carriers
        cached = 0
        for block in range(body.depth):
            before = after = n
            if cls is not None and block in self.locations:
                rule = rule_of(config.reduction, self.locations.index(block), len(self.locations))
                if rule.place == "before" or not rule.keeps_all(n, state):
                    after, more = REDUCED[cls](rule, n, state, own)
                    total += more
                    before = after if rule.place == "before" else n
            total += body.attend(before) + body.feed(after)
            n = after
            if not self.recover_at:
                continue
            if block in self.recover_at:
                n, cached, state.appended = n + cached, 0, state.appended + cached
            if block < self.recover_at[-1]:
                cached += config.clc_gap + min(carriers, n)
        if config.cla:
            return total + config.cla_width * own.dim * num_classes
        return total + body.pool(n) + num_classes * body.classify(n)


def _walk_of(config: ModelConfig, body: _Body) -> _Walk | None:
    """The walk of these settings; None where they do not fit together, which making the model then explains."""
    from clca.models.backbones import check_img_size

    own = body.model.patch_embed
    size = config.img_size if config.img_size is not None else tuple(own.img_size)
    size = (size, size) if isinstance(size, int) else size
    try:
        resolved = config.resolved(
            body.depth, global_pool=body.global_pool, opaque_block=None if body.splits else "a block"
        )
        check_img_size(config.backbone, size, own)
    except ClcaError:
        return None
    return _Walk(body, config, resolved.locations, resolved.recover_at, size)


def _measured(config: ModelConfig, num_classes: int) -> float:
    """What `clca.cost` says of the model, made for it."""
    from clca.models.cost import cost
    from clca.models.factory import build

    config = config.model_copy(update={"num_classes": num_classes})
    cls = reduction_class(config.reduction)
    with torch.random.fork_rng(devices=[]):  # a plan leaves the random numbers of its process alone
        if cls is None or not cls.pads:
            try:
                with torch.device("meta"):
                    return cost(build(config)).gmacs
            except RuntimeError:
                pass  # what reads values cannot do so on the meta device
        return cost(build(config)).gmacs
