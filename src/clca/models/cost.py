"""Cost of a model: GMACs, parameters, tokens per block."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from clca.errors import ClcaError
from clca.models.factory import reduce_tokens
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.trace import Trace


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Attributes:
        gmacs: Multiply-accumulate operations of the method in 10⁹, as the published program computes it: half of what
            torch's FlopCounterMode counts.
        params: Number of parameters.
        tokens_per_block: Output tokens of each block, before the cache recovers any; a mean over images for ATS.
        computed_gmacs: The part of it that this program computes: it skips attention rows of dropped tokens and, with
            the aggregation head, all rows of the last block but that of the CLS token.
    """

    gmacs: float
    params: int
    tokens_per_block: tuple[float, ...]
    computed_gmacs: float


def cost(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    images: Tensor | None = None,
    *,
    training: bool = False,
) -> Cost:
    """Cost of one image, in evaluation or in the forward pass of training: its MACs, tokens by block, and parameters.

    Args:
        model: The model; or a timm VisionTransformer, for the dense model to compare with.
        img_size: Height and width in pixels, or one number for both; None for the model's own. Other sizes need a
            backbone with `dynamic_img_size`.
        images: Images [B, 3, H, W] to average over, if the cost depends on the image (ATS); without them it is
            measured on noise.
        training: In the forward pass of training, where DynamicViT masks tokens instead of dropping them.

    Raises:
        ClcaError: If the model does not fit or does not take images of that size, or if its cost depends on the images
            and it is on the meta device, without weights.
    """
    if not isinstance(model, TokenReducedViT):
        model = reduce_tokens(model, cla=False, clc=False)
    like = next(model.parameters())
    if images is not None and images.shape[0] == 0:
        raise ClcaError("no images to average the cost over")
    if model.pads and like.is_meta:
        reduction = model.config.reduction
        raise ClcaError(
            f"what {reduction} keeps depends on the image, which the meta device does not compute: "
            "make the model on another device"
        )
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size or model.patch_embed.img_size)
    # Per module: a frozen part may have a mode of its own.
    modes, loss = [(module, module.training) for module in model.modules()], model.auxiliary_loss
    economical = model.economical
    model.eval()
    model.training = training  # of the model alone: batch norms normalise one image by their statistics
    try:
        inputs: list[tuple[Tensor, dict[str, Tensor]]]
        # Detached: the counter would look for gradients of parameters that are passed to a module.
        own = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}
        if model.pads:
            if images is None:
                generator = torch.Generator().manual_seed(0)
                images = torch.randn(4, model.in_chans, *size, generator=generator)
            # One at a time: in a batch an image would be padded, and the padding counted.
            inputs = [(image[None].to(like.device, like.dtype), own) for image in images]
        else:
            # Shapes alone decide the cost, and the meta device computes only those.
            meta = {name: tensor.to("meta") for name, tensor in own.items()}
            size = tuple(images.shape[-2:]) if images is not None else size
            x = torch.empty(1, model.in_chans, *size, device="meta", dtype=like.dtype)
            inputs = [(x, meta)]
        runs: dict[bool, list[tuple[int, list[float]]]] = {}
        for model.economical in (False, True):
            runs[model.economical] = [_count(model, x, state) for x, state in inputs]
    finally:
        for module, training in modes:
            module.training = training
        model.auxiliary_loss, model.economical = loss, economical
    published, computed = (sum(flops for flops, _ in runs[way]) / len(inputs) / 2e9 for way in (False, True))
    tokens = tuple(sum(counts) / len(inputs) for counts in zip(*(t for _, t in runs[True]), strict=True))
    return Cost(published, sum(p.numel() for p in model.parameters()), tokens, computed)


def gmacs_text(gmacs: float) -> str:
    """GMACs as tables show them: two decimals, or three significant digits below 1, to distinguish small models."""
    return f"{gmacs:.2f}" if gmacs >= 1 else f"{gmacs:#.3g}"


def flop_counter() -> FlopCounterMode:
    """Torch's FLOP counter without its table. That of PyTorch 2.13 and earlier misses fused attention on a CPU."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={} if fused in flop_registry else {fused: _attention_flops})


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _count(model: TokenReducedViT, x: Tensor, state: dict[str, Tensor]) -> tuple[int, list[float]]:
    """FLOPs and tokens per block of one image [1, 3, H, W], with `state` in place of the tensors of the model."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Trace:
            return self.inner.forward_trace(x)[1]

    counter = flop_counter()
    with torch.no_grad(), counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = functional_call(Traced(), {f"inner.{n}": t for n, t in state.items()}, (x,))
    return counter.get_total_flops(), [float(t) for t in trace.tokens]
