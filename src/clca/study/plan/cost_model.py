"""What a model will cost, from its settings alone, so that a study of thousands of models is planned without them.

`clca.cost` builds the model and counts while it runs, which takes half a second. Here the cost of a model is a sum over
its blocks: the backbone gives the cost of a block for a number of tokens, the reduction gives its own cost and how many
tokens it leaves. The counts equal those of `clca.cost`, except for a reduction whose number of tokens depends on the
image (ATS): for it they are the most that an image can cost.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from clca.data.cache.limits import beside_cache
from clca.errors import ClcaError, WorkError
from clca.models.config import ModelConfig, ResolvedConfig
from clca.reductions import KeepSchedule, ReductionRule, TokenCounts, reduction_rule
from clca.reductions.registry import SHIPPED
from clca.study.plan.backbone_cost import BackboneCost, plain_vit_cost
from clca.study.plan.identity import COMPUTES, model_text
from clca.system.files import part, read_json, write_json
from clca.training.rate_sets import mean_cost


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image, linear in the number of classes."""

    fixed: float
    per_class: float

    def gmacs(self, num_classes: int) -> float:
        """10⁹ multiply-accumulates with `num_classes` classes."""
        return (self.fixed + num_classes * self.per_class) / 1e9


def forward_gmacs(config: ModelConfig, num_classes: int, training: bool = False) -> float:
    """GMACs of one image in a forward pass, as `clca.cost` counts them for the method (`Cost.gmacs`).

    In training DynamicViT masks tokens and removes none, so that every block runs on all of them, and patch dropout,
    where the backbone has it, leaves patches out. All else costs what it does in evaluation. The cost of a reduction
    without cost methods is measured by `clca.cost`, once for each of its settings.

    Args:
        config: The model; its own `num_classes` is not read.
        num_classes: K; 0 for a model without a classifier.
        training: Whether the forward pass is that of training.

    Raises:
        ClcaError: If no such model can be built, with the message of `clca.create_model`.
    """
    if num_classes < 0:
        raise ClcaError(f"num_classes = {num_classes}: a model has 0 classes or more")
    return _model_macs(config, training).gmacs(num_classes)


def training_gmacs(config: ModelConfig, num_classes: int) -> float:
    """GMACs of one image in one training step: three forward passes, two of which stand for the backward pass.

    What the backward pass saves where nothing is trained is not subtracted. A step of a model for several keep rates
    has passes at two or three of them (`clca.training.rate_sets`): their mean cost counts.

    Args:
        config: The model; its own `num_classes` is not read.
        num_classes: K.

    Raises:
        ClcaError: If no such model can be built, with the message of `clca.create_model`.
    """
    if config.keep_rates is None:
        return 3 * forward_gmacs(config, num_classes, training=True)
    return mean_cost({rate: training_gmacs(_at(config, rate), num_classes) for rate in config.keep_rates})


def _at(config: ModelConfig, keep_rate: float) -> ModelConfig:
    """The same model for one keep rate."""
    return config.model_copy(update={"keep_rate": keep_rate, "keep_rates": None})


class StudyCosts:
    """Costs of a study's models. Those that need torch are kept in `$CLCA_CACHE`; losing them costs time only."""

    def __init__(self) -> None:
        self.path = beside_cache("costs.json")
        stored: dict[str, Any] = (read_json(self.path) if self.path is not None else None) or {}
        self.kept: dict[str, list[float]] = part(stored, str(COMPUTES))
        self._new = False

    def of(self, config: ModelConfig, num_classes: int, text: str | None = None) -> tuple[float, float]:
        """GMACs of one image in a training step and in evaluation.

        Args:
            config: The model.
            num_classes: K.
            text: `model_text(config)`, if it is known.

        Raises:
            ClcaError: If no such model can be built.
        """
        if not _needs_torch(config):
            return training_gmacs(config, num_classes), forward_gmacs(config, num_classes)
        found = self._measured(config, num_classes, text)
        if config.keep_rates is None:
            return found
        return mean_cost(
            {rate: self._measured(_at(config, rate), num_classes)[0] for rate in config.keep_rates}
        ), found[1]

    def _measured(self, config: ModelConfig, num_classes: int, text: str | None = None) -> tuple[float, float]:
        """As `of`, for a model whose cost needs torch, at its keep rate."""
        key = text if text is not None else model_text(config)
        if key not in self.kept:
            training, evaluation = _model_macs(config, training=True), _model_macs(config, training=False)
            self.kept[key] = [training.fixed, training.per_class, evaluation.fixed, evaluation.per_class]
            self._new = True
        training, evaluation = Macs(*self.kept[key][:2]), Macs(*self.kept[key][2:])
        return 3 * training.gmacs(num_classes), evaluation.gmacs(num_classes)

    def save(self) -> None:
        """Write the new ones; failing to is no reason to stop."""
        if not self._new or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {str(COMPUTES): self.kept})
        except (OSError, WorkError):
            pass
        self._new = False


def _needs_torch(config: ModelConfig) -> bool:
    shipped = config.reduction == "none" or config.reduction in SHIPPED
    return not shipped or plain_vit_cost(config) is None


def _model_macs(config: ModelConfig, training: bool) -> Macs:
    rule = reduction_rule(config.reduction)
    if rule is None or rule.has_cost():
        backbone = plain_vit_cost(config) or _measured_backbone(config)
        resolved = _resolved(config, backbone) if backbone is not None else None
        if backbone is not None and resolved is not None:
            return _sum_over_blocks(_Model.of(config, resolved, backbone, rule, training))
    # The reduction has no cost methods; or no such model can be built, and building it raises the reason.
    kwargs = repr(sorted(config.backbone_kwargs.items()))
    return _measured(_Measured((*(getattr(config, name) for name in _HASHABLE), kwargs, rule), config))


def _measured_backbone(config: ModelConfig) -> BackboneCost | None:
    from clca.study.plan.measured_cost import backbone_cost

    return backbone_cost(config)


def _resolved(config: ModelConfig, backbone: BackboneCost) -> ResolvedConfig | None:
    try:
        return config.resolved(backbone.depth, global_pool=backbone.global_pool, opaque_block=backbone.opaque_block)
    except ClcaError:
        return None


# -- the sum over the blocks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """All that the cost of a model follows from; models that differ in their weights alone are equal.

    Attributes:
        backbone: Cost of its backbone.
        rule: Rule of its reduction, if it has one.
        keep_rate: One rate, or one per location.
        locations: Blocks that reduce.
        recover_at: Blocks after which the cache returns tokens.
        num_clr: R, the number of carriers; 0 without the cache.
        gap: Whether the cache stores the average of the tokens too.
        clc: Whether there is a cache.
        cla_width: Features of the aggregation head per channel (one per depth if it is linear); 0 without that head.
        training: Whether it is trained.
    """

    backbone: BackboneCost
    rule: type[ReductionRule] | None
    keep_rate: float | tuple[float, ...]
    locations: tuple[int, ...]
    recover_at: tuple[int, ...]
    num_clr: int
    gap: bool
    clc: bool
    cla_width: int
    training: bool

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        resolved: ResolvedConfig,
        backbone: BackboneCost,
        rule: type[ReductionRule] | None,
        training: bool,
    ) -> _Model:
        return cls(
            backbone=backbone,
            rule=rule,
            keep_rate=config.keep_rate,
            locations=resolved.locations,
            recover_at=resolved.recover_at,
            num_clr=resolved.num_clr,
            gap=config.clc_gap,
            clc=config.clc,
            cla_width=_head_width(config, len(resolved.locations) + 1 + config.cla_average),
            training=training,
        )

    def first_tokens(self) -> int:
        """N before the first block."""
        patches, dropped = self.backbone.patches, self.backbone.patch_drop if self.training else 0
        kept = max(1, int(patches * (1 - dropped))) if dropped else patches
        return self.backbone.prefix + kept + self.num_clr

    def rules(self) -> dict[int, ReductionRule]:
        """The rule of the reduction at each location."""
        if self.rule is None:
            return {}
        count, backbone = len(self.locations), self.backbone
        schedule = KeepSchedule(self.keep_rate, count)
        with _without_parameters(self.rule):
            return {
                block: self.rule(backbone.dim, j, count, backbone.patches, schedule)
                for j, block in enumerate(self.locations)
            }


def _head_width(config: ModelConfig, depths: int) -> int:
    if not config.cla:
        return 0
    return depths if config.cla_head == "linear" else config.cla_width


def _without_parameters(rule: type[ReductionRule]) -> AbstractContextManager[Any]:
    """Where the reductions of other packages, which are modules with parameters, are made without allocating any."""
    if rule.__module__ == ReductionRule.__module__:
        return nullcontext()
    import torch

    return torch.device("meta")


@cache
def _sum_over_blocks(model: _Model) -> Macs:
    """Multiply-accumulates of a forward pass, block by block, with a number of tokens in place of the tokens."""
    backbone, rules = model.backbone, model.rules()
    state = TokenCounts(
        prefix=backbone.prefix,
        num_patches=backbone.patches,
        schedule=KeepSchedule(model.keep_rate, len(model.locations)),
        appended=model.num_clr,
        cache_on=model.clc,
        training=model.training,
    )
    total: float = backbone.embedding
    n, cached = model.first_tokens(), 0
    for block in range(backbone.depth):
        attended = n
        if (rule := rules.get(block)) is not None and (rule.place == "before" or not rule.keeps_all(n, state)):
            total += rule.macs(n, state, backbone.head_dim)
            if rule.place == "inside" and "cls_attention" in rule.needs:
                total += backbone.attn_dim * n  # the logits of one query; the other evidence takes no products
            n = rule.tokens_after(n, state)
            attended = n if rule.place == "before" else attended
        total += backbone.attention(attended) + backbone.mlp(n)
        if not model.recover_at:
            continue
        if block in model.recover_at:
            n, cached, state.appended = n + cached, 0, state.appended + cached
        if block < model.recover_at[-1]:
            cached += model.gap + min(model.num_clr, n)
    if model.cla_width:
        return Macs(total, model.cla_width * backbone.dim)
    return Macs(total + backbone.pool(n), backbone.classifier(n))


# -- measured instead ------------------------------------------------------------------------------------------

_HASHABLE = sorted(set(ModelConfig.model_fields) - {"backbone_kwargs", "num_classes"})
_FEW, _MANY = 1, 1000  # the numbers of classes at which a model is measured


@dataclass(frozen=True)
class _Measured:
    """A model to measure, compared by `key`, because a dictionary among its settings has no hash."""

    key: tuple[Any, ...]
    config: ModelConfig = field(compare=False)


@cache
def _measured(model: _Measured) -> Macs:
    from clca.study.plan.measured_cost import measured_gmacs

    # A mean over four images at most: the digits behind are those of the division by 10⁹.
    few, many = (round(measured_gmacs(model.config, k) * 1e9, 2) for k in (_FEW, _MANY))
    per_class = (many - few) / (_MANY - _FEW)
    return Macs(few - _FEW * per_class, per_class)
