"""`explain(model, image)`: explain one prediction of a model."""

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
from clca.explain.recording import ForwardRecord, cls_attention, record_forward, scatter
from clca.explain.view import View
from clca.models.backbones import pixels_per_patch
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.trace import Trace
from clca.reductions import reduction_class

_TOP_K = 5
_STEPS = 16  # on the path of integrated gradients
_STEPS_PER_BATCH = 4  # a large backbone keeps gigabytes of activations for each


def explain(model: TokenReducedViT, image: Image.Image | str | Path, target: str | int | None = None) -> Explanation:
    """Explain a prediction: the stages of reduction, attention, evidence, and the contribution of each depth.

        explanation = explain(clca.from_pretrained("runs/leaves"), "leaf.jpg")
        explanation.stages[0].owner                       # the token that contains each patch
        explanation.pixels(explanation.evidence)          # a map over the pixels of the image

    Evidence is computed by integrated gradients (Sundararajan et al., ICML 2017): the gradient of the target's logit
    minus the mean of all logits, averaged over 16 steps on a straight path from an image of uniform mean colour to this
    one, times the difference of the two images, summed over the pixels of each patch. The gradients flow through the
    reductions, including soft merges and fused tokens, so no owner map is needed; a dropped patch has the evidence that
    it passed on to other tokens before.

    Args:
        model: A model with `classes` and `preprocess`, as after training; it is set to evaluation mode. The computation
            uses the precision of its weights.
        image: RGB image of any size, or a file.
        target: Class to explain, by name or index; the most likely one by default.

    Raises:
        ClcaError: The model has no classes or preprocessing, there is no such class, or the file is not an image.
    """
    if model.classes is None or model.preprocess is None:
        raise ClcaError("the model has no classes or preprocessing: set model.classes and model.preprocess")
    classes = model.classes
    original = image.convert("RGB") if isinstance(image, Image.Image) else read_image(image)
    index = None if target is None else _class_index(classes, target)
    model.eval()
    with torch.inference_mode(False):
        pixels = to_input(model, original)
        record = record_forward(model, pixels)
        chosen = int(record.logits.argmax()) if index is None else index
        evidence = integrated_gradients(model, pixels, chosen)
    probabilities = record.logits.float().softmax(dim=0)
    best, labels = most_likely(probabilities, _TOP_K)
    baseline, depths = _depths(model, record, chosen)
    return Explanation(
        image=original,
        view=View.of(original.size, model.preprocess, _grid(model)),
        reduction=model.config.reduction,
        keep_rate=model.keep_rate,
        top=tuple((classes[k], p) for p, k in zip(best.tolist(), labels.tolist(), strict=True)),
        target=classes[chosen],
        probability=probabilities[chosen].item(),
        logit=record.logits[chosen].item(),
        stages=_stages(model, record.trace),
        attention=_attention(model, record),
        evidence=evidence,
        baseline=baseline,
        depths=depths,
    )


def stages(model: TokenReducedViT, image: Image.Image) -> tuple[View, tuple[Stage, ...]]:
    """The stages of reduction of an image, as in `explain`, at the cost of one forward pass.

    Args:
        model: A model with `preprocess`, in evaluation mode.
        image: RGB image of any size.
    """
    assert model.preprocess is not None
    with torch.inference_mode():
        _, trace = model.forward_trace(to_input(model, image))
    return View.of(image.size, model.preprocess, _grid(model)), _stages(model, trace)


def to_input(model: TokenReducedViT, image: Image.Image) -> Tensor:
    """Preprocess an image for the model, [1, 3, H, W]."""
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
    high, wide = pixels_per_patch(model.patch_embed)
    side = model.preprocess["img_size"]
    return side // high, side // wide


def integrated_gradients(model: TokenReducedViT, image: Tensor, target: int) -> NDArray[np.float64]:
    """Evidence of each patch for a class, as described in `explain`, [P].

    Args:
        model: The model, in evaluation mode.
        image: Preprocessed image, [1, 3, H, W].
        target: Index of the class.
    """
    uniform = image.mean(dim=(2, 3), keepdim=True)
    fractions = (torch.arange(_STEPS, device=image.device, dtype=image.dtype) + 0.5) / _STEPS
    total = torch.zeros_like(image[0], dtype=torch.float64)
    # Not model(...): a compiled model would be compiled again for gradients, which takes minutes.
    forward = type(model).forward
    with torch.enable_grad():
        for steps in fractions.split(_STEPS_PER_BATCH):
            path = (uniform + (image - uniform) * steps[:, None, None, None]).requires_grad_()
            logits = forward(model, path).double()
            score = (logits[:, target] - logits.mean(dim=1)).sum()
            total += torch.autograd.grad(score, path)[0].double().sum(dim=0) / _STEPS
    relevance = (total * (image - uniform)[0].double()).sum(dim=0)  # [H, W]
    high, wide = pixels_per_patch(model.patch_embed)
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


def _attention(model: TokenReducedViT, record: ForwardRecord) -> tuple[Attention, ...]:
    attention = []
    for index in sorted({*model.locations, len(model.blocks) - 1}):
        row = cls_attention(model.blocks[index], record.inputs[index])
        if row is not None:
            patches = scatter(row.double(), record.inputs[index].owner).cpu().numpy()
            attention.append(Attention(index, patches, max(0.0, 1 - float(patches.sum()))))
    return tuple(attention)


def _depths(model: TokenReducedViT, record: ForwardRecord, target: int) -> tuple[float | None, tuple[DepthShare, ...]]:
    if model.cla_head is None or record.cls_tokens is None:
        return None, ()
    values, baseline = depth_shares(model.cla_head, record.cls_tokens, target)
    size = kernel_shares(model.cla_head, record.cls_tokens).double().abs().sum(dim=1)
    kernel = size / size.sum().clamp(min=1e-12)
    blocks = [(block, False) for block in model.aggregate_at]
    if model.average_before is not None:
        blocks.insert(0, (model.average_before, True))
    shares = zip(blocks, values.tolist(), kernel.tolist(), strict=True)
    return baseline, tuple(DepthShare(block, logit, size, average) for (block, average), logit, size in shares)
