"""`explain(model, image)`: why a model said what it said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clca.data.images import read_image
from clca.data.transforms import Normalization, from_preprocess
from clca.errors import ClcaError
from clca.explain.depths import DepthShare, depth_shares, kernel_shares
from clca.explain.explanation import Attention, Explanation, Stage
from clca.explain.view import View
from clca.explain.recording import Watch, cls_attention, scatter, watch
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.trace import Trace
from clca.reductions import reduction_class

_NAMED = 5
_STEPS = 16  # of the path of integrated gradients
_AT_ONCE = 4  # of these in memory: a large backbone keeps gigabytes of activations for each


def explain(model: TokenReducedViT, image: Image.Image | str | Path, target: str | int | None = None) -> Explanation:
    """Say what a model made of an image: its stages, its attention, its evidence, and what each depth contributed.

        explanation = explain(clca.from_pretrained("runs/leaves"), "leaf.jpg")
        explanation.stages[0].owner                       # the token that holds each patch
        explanation.pixels(explanation.evidence)          # a map over the photograph's pixels

    The evidence is that of integrated gradients (Sundararajan et al., ICML 2017): the gradient of the target's logit
    less the mean of all, along a straight path from a plain image of the mean colour to this one (16 steps), times the
    difference, summed over the pixels of each patch. It goes back through the reductions themselves, soft merges and
    fused tokens included, and so needs no owner map; a dropped patch counts by what it told others before.

    Args:
        model: With `classes` and `preprocess`, as training leaves it; put in evaluation mode. It computes in the
            precision of its weights.
        image: RGB image of any size, or a file.
        target: Class to explain, by name or number; the most likely one by default.

    Raises:
        ClcaError: The model does not say its classes or preprocessing, there is no such class, or the file is no image.
    """
    if model.classes is None or model.preprocess is None:
        raise ClcaError("the model does not say its classes and preprocessing: set model.classes and model.preprocess")
    classes = model.classes
    original = image.convert("RGB") if isinstance(image, Image.Image) else read_image(image)
    wanted = None if target is None else _class_index(classes, target)
    model.eval()
    with torch.inference_mode(False):
        pixels = to_input(model, original)
        seen = watch(model, pixels)
        chosen = int(seen.logits.argmax()) if wanted is None else wanted
        evidence = integrated_gradients(model, pixels, chosen)
    probabilities = seen.logits.float().softmax(dim=0)
    best, named = most_likely(probabilities, _NAMED)
    baseline, depths = _depths(model, seen, chosen)
    return Explanation(
        image=original,
        view=View.of(original.size, model.preprocess, _grid(model)),
        reduction=model.config.reduction,
        keep_rate=model.keep_rate,
        top=tuple((classes[k], p) for p, k in zip(best.tolist(), named.tolist(), strict=True)),
        target=classes[chosen],
        probability=probabilities[chosen].item(),
        logit=seen.logits[chosen].item(),
        stages=_stages(model, seen.trace),
        attention=_attention(model, seen),
        evidence=evidence,
        baseline=baseline,
        depths=depths,
    )


def stages(model: TokenReducedViT, image: Image.Image) -> tuple[View, tuple[Stage, ...]]:
    """What each reduction leaves of an image, as in `explain`, for the cost of one forward pass.

    Args:
        model: With `preprocess`, in evaluation mode.
        image: RGB, of any size.
    """
    assert model.preprocess is not None
    with torch.inference_mode():
        _, trace = model.forward_trace(to_input(model, image))
    return View.of(image.size, model.preprocess, _grid(model)), _stages(model, trace)


def to_input(model: TokenReducedViT, image: Image.Image) -> Tensor:
    """The image as the model takes it, [1, 3, H, W], by its own preprocessing."""
    assert model.preprocess is not None
    like = next(model.patch_embed.parameters())
    pixels = from_preprocess(model.preprocess, normalize=False)(image)
    return Normalization(model.preprocess)(pixels[None], like.device).to(like.dtype)


def _class_index(classes: list[str], target: str | int) -> int:
    if isinstance(target, str):
        if target not in classes:
            raise ClcaError(f"no class {target!r}: choose one of {', '.join(classes[:12])}")
        return classes.index(target)
    if not 0 <= target < len(classes):
        raise ClcaError(f"no class {target}: the model has {len(classes)}, from 0")
    return target


def _grid(model: TokenReducedViT) -> tuple[int, int]:
    assert model.preprocess is not None
    high, wide = model.patch_embed.patch_size
    side = model.preprocess["img_size"]
    return side // high, side // wide


def integrated_gradients(model: TokenReducedViT, image: Tensor, target: int) -> NDArray[np.float64]:
    """Evidence of each patch for a class, as `explain` says it, [P].

    Args:
        model: In evaluation mode.
        image: As the model takes it, [1, 3, H, W].
        target: The class.
    """
    plain = image.mean(dim=(2, 3), keepdim=True)
    share = (torch.arange(_STEPS, device=image.device, dtype=image.dtype) + 0.5) / _STEPS
    total = torch.zeros_like(image[0], dtype=torch.float64)
    # Not the object itself: a compiled model would be compiled again for gradients, which takes minutes.
    forward = type(model).forward
    with torch.enable_grad():
        for some in share.split(_AT_ONCE):
            path = (plain + (image - plain) * some[:, None, None, None]).requires_grad_()
            logits = forward(model, path).double()
            score = (logits[:, target] - logits.mean(dim=1)).sum()
            total += torch.autograd.grad(score, path)[0].double().sum(dim=0) / _STEPS
    relevance = (total * (image - plain)[0].double()).sum(dim=0)  # [H, W]
    high, wide = model.patch_embed.patch_size
    rows, columns = relevance.shape[0] // high, relevance.shape[1] // wide
    return relevance.view(rows, high, columns, wide).sum(dim=(1, 3)).flatten().cpu().numpy()


def _stages(model: TokenReducedViT, trace: Trace) -> tuple[Stage, ...]:
    kind = reduction_class(model.config.reduction)
    if kind is None:
        return ()
    return tuple(
        Stage(
            block,
            int(trace.tokens[block]),
            trace.owner[block][0].cpu().numpy(),
            trace.fused[block][0].cpu().numpy(),
            kind.fuses,
        )
        for block in model.locations
    )


def _attention(model: TokenReducedViT, seen: Watch) -> tuple[Attention, ...]:
    found = []
    for index in sorted({*model.locations, len(model.blocks) - 1}):
        row = cls_attention(model.blocks[index], seen.sights[index])
        if row is not None:
            patches = scatter(row.double(), seen.sights[index].owner).cpu().numpy()
            found.append(Attention(index, patches, max(0.0, 1 - float(patches.sum()))))
    return tuple(found)


def _depths(model: TokenReducedViT, seen: Watch, target: int) -> tuple[float | None, tuple[DepthShare, ...]]:
    if model.cla_head is None or seen.cls_tokens is None:
        return None, ()
    values, baseline = depth_shares(model.cla_head, seen.cls_tokens, target)
    size = kernel_shares(model.cla_head, seen.cls_tokens).double().abs().sum(dim=1)
    kernel = size / size.sum().clamp(min=1e-12)
    blocks = sorted({*model.locations, len(model.blocks) - 1})
    shares = zip(blocks, values.tolist(), kernel.tolist(), strict=True)
    return baseline, tuple(DepthShare(*share) for share in shares)
