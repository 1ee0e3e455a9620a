"""How far an answer can be trusted: calibrated probabilities, and a score of how unfamiliar an image is to a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from clca.errors import ClcaError
from clca.models.timm_interface import TimmInterface
from clca.models.weight_headers import TensorHeader, read_safetensors_header
from clca.system.numbers import integer, number, share

CONFIDENCE = "confidence.safetensors"
"""The file in a run folder or saved model."""

_FORMAT = "clca-confidence-1"
_MOST_RATES = 100


@dataclass(frozen=True)
class CalibrationFacts:
    """What a confidence was set on; shares are in 0 … 1.

    Attributes:
        images: Number of watched images, which no weight was fitted to.
        false_alarms: Share of images like these that may be called unfamiliar.
        loss, ece: Cross-entropy and expected calibration error of the watched images before scaling.
        scaled_loss, scaled_ece: The same after it.
    """

    images: int
    false_alarms: float
    loss: float
    ece: float
    scaled_loss: float
    scaled_ece: float


class Confidence(nn.Module):
    """Calibrated probabilities and unfamiliarity at one keep rate.

    Probabilities are softmax(logits / temperature) (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).
    Unfamiliarity is the Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), in the CLS tokens of the
    first two depths that the head reads, relative to the distance that a stated share of the watched images exceed: an
    image beyond 1 is taken for none of the classes.

    Args:
        keep_rate: Of the model.
        rows: D, positions of these tokens among those that the head reads.
        width: C, width of a token.
        classes: K', the number of classes with training images.
        facts: What it was set on.
    """

    temperature: Tensor
    mean: Tensor
    whitening: Tensor
    centers: Tensor

    def __init__(
        self,
        keep_rate: float | tuple[float, ...],
        rows: Sequence[int],
        width: int,
        classes: int,
        facts: CalibrationFacts,
    ) -> None:
        super().__init__()
        self.keep_rate, self.rows, self.facts = keep_rate, tuple(rows), facts
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("mean", torch.zeros(len(self.rows), width))
        self.register_buffer("whitening", torch.zeros(len(self.rows), width, width))
        self.register_buffer("centers", torch.zeros(classes, len(self.rows), width))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits [B, K], in float32."""
        return (logits.float() / self.temperature).softmax(dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unfamiliarity of images, [B], by the tokens that the head reads, [B, G, C] (`read_by_head`)."""
        with torch.autocast(tokens.device.type, enabled=False):
            chosen = torch.stack([tokens[:, row] for row in self.rows], dim=1)
            x = normalized(chosen) - self.mean  # [B, D, C]
            x = (x.transpose(0, 1) @ self.whitening).transpose(0, 1).flatten(1)
            centers = self.centers.flatten(1)
            # |x - c|² = |x|² + |c|² - 2 x·c: all differences at once would be K times as large as the tokens.
            lengths = (x * x).sum(dim=1, keepdim=True) + (centers * centers).sum(dim=1)
            squared = lengths - 2 * (x @ centers.transpose(0, 1))
            return squared.amin(dim=1).clamp(min=0).sqrt()


def normalized(tokens: Tensor) -> Tensor:
    """Tokens [..., C] in float32, each normalised over its channels."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=1e-6)


class Confidences:
    """The confidences of a model, one for each keep rate that it was trained for.

    Args:
        each: In the order of the keep rates.
    """

    def __init__(self, each: Iterable[Confidence]) -> None:
        self.each = tuple(each)

    def at(self, keep_rate: float | tuple[float, ...]) -> Confidence | None:
        """That of a keep rate; None where it was not set at this rate, since the tokens are others at each."""
        return next((one for one in self.each if one.keep_rate == keep_rate), None)

    def to(self, device: torch.device | str) -> Confidences:
        """Move all to a device."""
        for one in self.each:
            one.to(device)
        return self

    def save(self, file: Path) -> None:
        """Write `confidence.safetensors`; not atomic."""
        tensors = {
            f"{place}.{name}": value.detach().cpu().contiguous()
            for place, one in enumerate(self.each)
            for name, value in one.state_dict().items()
        }
        described = [{"keep_rate": one.keep_rate, "rows": one.rows, "facts": asdict(one.facts)} for one in self.each]
        file.write_bytes(save(tensors, metadata={_FORMAT: json.dumps(described)}))


class ModelWithConfidence(nn.Module):
    """A model that also returns how unfamiliar each image is: images [B, 3, H, W] → logits [B, K], unfamiliarity [B].

    Args:
        model: The model.
        confidence: At its keep rate.
    """

    def __init__(self, model: TimmInterface, confidence: Confidence) -> None:
        super().__init__()
        self.model, self.confidence = model, confidence

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        features = model.forward_features(images)
        logits = model.forward_head(features)
        return logits, self.confidence(read_by_head(self.model, features))

    def compile(self, **options: Any) -> None:
        """Compile both in place, as `TokenReducedViT.compile` does."""
        from clca.models.compile import compiled_call

        self._compiled_call_impl: Any = compiled_call(self, **options)


class AnsweringModel:
    """A model as it is applied to images: calibrated probabilities, and unfamiliarity where its confidence allows.

    Args:
        model: On its device, in evaluation mode; its keep rate may change between calls.
        compile: Compile it.
    """

    def __init__(self, model: TimmInterface, *, compile: bool = False) -> None:
        self.model: Any = model
        self._with: dict[Confidence, ModelWithConfidence] = {}
        if model.confidence is not None:
            model.confidence.to(next(model.parameters()).device)
            self._with = {one: ModelWithConfidence(model, one) for one in model.confidence.each}
        if compile:
            for each in (self.model, *self._with.values()):
                each.compile()

    @property
    def confidence(self) -> Confidence | None:
        """That of the present keep rate; None if it was not set at this rate."""
        confidences: Confidences | None = self.model.confidence
        return None if confidences is None else confidences.at(self.model.keep_rate)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities [B, K] in float32, and unfamiliarity [B] or None, of images [B, 3, H, W]."""
        found = self.confidence
        if found is None:
            return self.model(images).float().softmax(dim=1), None
        logits, unfamiliarity = self._with[found](images)
        return found.probabilities(logits), unfamiliarity


def read_by_head(model: TimmInterface, features: Tensor) -> Tensor:
    """What the head reads, [B, G, C], of what `forward_features` returns; G is 1 without aggregation head."""
    if model.cla_head is not None:
        return features
    pooled: Tensor = cast(Any, model).forward_head(features, pre_logits=True)
    return pooled.unsqueeze(1)


def confidence_rows(model: TimmInterface) -> tuple[int, ...]:
    """Positions, among the tokens that the head reads, of those that differ most for images of no known class.

    On leaves and grains the CLS tokens after the first two reductions recognise other varieties of the same species
    better than deeper ones, which keep little but what separates the known classes (docs/confidence.md).
    """
    if model.cla_head is None:
        return (0,)
    first = int(model.average_before is not None)
    return tuple(range(first, min(first + 2, first + len(model.aggregate_at))))


def load_confidences(model: TimmInterface, file: Path) -> Confidences | None:
    """Read the `confidence.safetensors` of a model; None if there is none.

    Raises:
        ClcaError: It is damaged, or of another model.
    """
    if not file.is_file():
        return None
    wrong = f"{file}: is not the confidence of this model: remove it, and the model answers without"
    try:
        header = read_safetensors_header(file)
        with safe_open(file, framework="pt") as opened:
            described = json.loads((opened.metadata() or {}).get(_FORMAT, "null"))
            if not isinstance(described, list) or not 1 <= len(described) <= _MOST_RATES:
                raise ClcaError(wrong)
            each = [_empty(model, one, header, place) for place, one in enumerate(described)]
            expected = {
                f"{place}.{name}": value.shape
                for place, one in enumerate(each)
                for name, value in one.state_dict().items()
            }
            if {name: found.shape for name, found in header.items()} != expected or any(
                found.dtype != torch.float32 for found in header.values()
            ):
                raise ClcaError(wrong)
            for place, one in enumerate(each):
                for name, value in one.state_dict().items():
                    value.copy_(opened.get_tensor(f"{place}.{name}"))
                    if not value.isfinite().all() or (name == "temperature" and value <= 0):
                        raise ClcaError(wrong)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError):
        raise ClcaError(wrong) from None
    return Confidences(one.eval() for one in each)


def _empty(model: TimmInterface, described: Any, header: Mapping[str, TensorHeader], place: int) -> Confidence:
    """A confidence for the tensors that a file describes.

    Raises:
        KeyError, TypeError, ValueError: The description is unsound.
    """
    rate, rows, facts = described["keep_rate"], described["rows"], described["facts"]
    rate = tuple(rate) if isinstance(rate, list) else rate
    if any(share(one) is None or not one > 0 for one in (rate if isinstance(rate, tuple) else (rate,))):
        raise ValueError
    depths = 1 if model.cla_head is None else len(model.aggregate_at) + (model.average_before is not None)
    if not rows or len(rows) > depths or any(integer(row, low=0, high=depths - 1) is None for row in rows):
        raise ValueError
    classes = header[f"{place}.centers"].shape[0]
    width = header[f"{place}.mean"].shape[-1]
    if not 1 <= classes <= model.num_classes or width != model.embed_dim:
        raise ValueError
    known = CalibrationFacts(**facts)
    if integer(known.images, low=1) is None or share(known.false_alarms) is None:
        raise ValueError
    if any(_is_no_loss(value) for value in (known.loss, known.ece, known.scaled_loss, known.scaled_ece)):
        raise ValueError
    return Confidence(rate, rows, width, classes, known)


def _is_no_loss(value: Any) -> bool:
    return number(value, low=0) is None
