"""Compare the outputs of an exported file with those of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clca.errors import WorkError
from clca.export.load import Exported
from clca.export.program import plain_copy
from clca.models.token_reduced_vit import TokenReducedViT

TOLERANCE = 1e-3
"""Largest difference of an image's logits, relative to the largest logit, that counts as rounding: a hundred times the
differences observed if the same tokens are kept. If two tokens have nearly equal scores, another order of summation can
keep the other one, and the logits then differ by more; this is accepted for one image in twenty."""

BATCHES = (1, 3, 16)
"""Batch sizes, the last one repeated for the remaining images."""


@dataclass(frozen=True)
class Agreement:
    """The result of comparing a file with PyTorch.

    Attributes:
        images: Number of images.
        batches: Batch sizes used.
        largest: Largest absolute difference of a logit.
        scale: Largest absolute logit of PyTorch.
        outside: Number of images whose logits differ by more than `TOLERANCE` × `scale`.
        top1: Share of images with the same most likely class.
        accuracy, reference_accuracy: Top-1 accuracy of the file and of PyTorch on images with labels; NaN without.
    """

    images: int
    batches: tuple[int, ...]
    largest: float
    scale: float
    outside: int
    top1: float
    accuracy: float
    reference_accuracy: float

    @property
    def holds(self) -> bool:
        """Whether the file computes the same as the model, up to rounding."""
        allowed = max(self.images // 20, 1 if self.images >= 10 else 0)
        return math.isfinite(self.largest) and self.outside <= allowed

    def require(self, what: str) -> None:
        """Raise a WorkError with the differences unless `holds`."""
        if not self.holds:
            raise WorkError(
                f"{what} does not agree with PyTorch on {self.outside} of {self.images} images (logits differ by up to "
                f"{self.largest:.2g}, the largest is {self.scale:.2g}), so it was not kept"
            )


def check_exported(
    model: TokenReducedViT, files: Sequence[Exported], images: Iterable[tuple[Tensor, int | None]]
) -> list[Agreement]:
    """Run a model and its exported files on the same images.

    Args:
        model: The exported model.
        files: The files to compare with it.
        images: Preprocessed images [3, H, W] and their labels, None where unknown.

    Returns:
        One result per file.
    """
    reference_model = plain_copy(model)
    reference, results, labels, sizes = [], [[] for _ in files], [], []  # type: ignore[var-annotated]
    for batch, known in _batches(images):
        with torch.inference_mode():
            reference.append(reference_model(batch))
        for logits, file in zip(results, files, strict=True):
            logits.append(file(batch))
        labels += known
        sizes.append(len(batch))
    expected = torch.cat(reference)
    return [_compare(torch.cat(logits), expected, labels, sizes) for logits in results]


def _batches(images: Iterable[tuple[Tensor, int | None]]) -> Iterable[tuple[Tensor, list[int | None]]]:
    sizes, waiting = list(BATCHES), list[tuple[Tensor, int | None]]()
    for image in images:
        waiting.append(image)
        if len(waiting) == sizes[0]:
            yield torch.stack([x for x, _ in waiting]), [label for _, label in waiting]
            waiting, sizes = [], sizes[1:] or sizes
    if waiting:
        yield torch.stack([x for x, _ in waiting]), [label for _, label in waiting]


def _compare(logits: Tensor, expected: Tensor, labels: list[int | None], sizes: list[int]) -> Agreement:
    scale = expected.abs().max().item()
    difference = (logits - expected).abs().amax(dim=1)
    same = logits.argmax(dim=1) == expected.argmax(dim=1)
    known = [i for i, label in enumerate(labels) if label is not None]
    truth = torch.tensor([labels[i] for i in known], dtype=torch.long)

    def accuracy(outputs: Tensor) -> float:
        return (outputs[known].argmax(dim=1) == truth).double().mean().item() if known else math.nan

    return Agreement(
        images=len(expected),
        batches=tuple(sorted(set(sizes))),
        # NaN counts as an infinite difference.
        largest=difference.nan_to_num(nan=math.inf).max().item(),
        scale=scale,
        outside=int((~(difference <= TOLERANCE * scale)).sum()),
        top1=same.double().mean().item(),
        accuracy=accuracy(logits),
        reference_accuracy=accuracy(expected),
    )
