"""A model as an endpoint uses it: its description, and probabilities of a batch at a keep rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from clca.data.transforms import Normalization, from_preprocess
from clca.errors import ClcaError
from clca.evaluation.stored import NUMBERS, evaluations
from clca.kernels.prepack import prepacked
from clca.models.confidence import AnsweringModel
from clca.models.cost import Cost, cost
from clca.models.token_reduced_vit import TokenReducedViT
from clca.reductions import reduction_class
from clca.system.files import as_utf8, read_json
from clca.system.numbers import number
from clca.training.run_folder import RunFolder

Rates = float | tuple[float, ...]
EVERY_IMAGE = "every image"


class ServedModel:
    """One model, ready to answer.

    Args:
        name: How requests call it.
        model: With `classes` and `preprocess`.
        accelerator: Device and precision.
        run: The folder it was loaded from, or None.

    Attributes:
        cost: Of one image.
        cost_of: Which images it is the cost of, where it depends on them.

    Raises:
        ClcaError: The model lacks classes or preprocessing, or they are invalid.
    """

    def __init__(
        self, name: str, model: TokenReducedViT, accelerator: Accelerator, run: RunFolder | None = None
    ) -> None:
        if model.classes is None or model.preprocess is None:
            raise ClcaError(f"{name} has no classes or preprocessing: set model.classes and .preprocess")
        self.name, self.run, self._accelerator = as_utf8(name), run, accelerator
        self.classes: list[str] = as_utf8(list(model.classes))
        self.backbone, self.reduction = model.config.backbone, model.config.reduction
        self.keep_rate: Rates = model.keep_rate
        self.cost: Cost = cost(model)
        self.cost_of = EVERY_IMAGE
        if model.pads:
            self.cost, self.cost_of = _evaluated_cost(self.cost, self.keep_rate, run)
        self.transform = from_preprocess(model.preprocess, normalize=False)
        self.image_size: int = model.preprocess["img_size"]
        self._normalize = Normalization(model.preprocess)
        self.model = model.to(accelerator.device).eval()
        self._answer = AnsweringModel(self.model)
        prepacked(self.model).__enter__()  # never left: the weights do not change, and what is kept goes with them

    @property
    def false_alarms(self) -> float | None:
        """The share of known images that are taken for none of the classes; None without a confidence."""
        each = () if self.model.confidence is None else self.model.confidence.each
        return each[0].facts.false_alarms if each else None

    @property
    def keep_rate_is_free(self) -> bool:
        """Whether a request may choose its keep rate."""
        cls = reduction_class(self.reduction)
        return cls is not None and not cls.fixed_counts

    def rates(self, asked: float | None) -> Rates:
        """The keep rate of a request.

        Args:
            asked: What it names, in (0, 1]; None for the model's own.

        Raises:
            ClcaError: Where the model cannot change its own.
        """
        if asked is None or asked == self.keep_rate:
            return self.keep_rate
        if not self.keep_rate_is_free:
            why = "keeps every token" if self.reduction == "none" else "has parameters for one keep rate"
            raise ClcaError(f"reduction {self.reduction} {why}: leave keep_rate out")
        return asked

    def answers(self, rates: Rates, images: Sequence[Tensor]) -> Tensor:
        """Probabilities and unfamiliarity, [B, K + 1] on the CPU; in one thread at a time.

        The last column is NaN at keep rates at which the model's confidence was not set.

        Args:
            rates: As `rates` returned.
            images: uint8 [3, H, W] each, as `transform` gives them.
        """
        self.model.keep_rate = rates
        with torch.inference_mode(), self._accelerator.autocast():
            found = self._answer(self._normalize(torch.stack(list(images)), self._accelerator.device))
        probabilities, unfamiliarity = found
        last = probabilities.new_full((len(probabilities),), torch.nan) if unfamiliarity is None else unfamiliarity
        return torch.cat([probabilities, last[:, None]], dim=1).cpu()

    def normalized(self, images: Sequence[Tensor]) -> Tensor:
        """What the model reads of images as `transform` gives them, [B, 3, H, W]."""
        return self._normalize(torch.stack(list(images)), self._accelerator.device).clone()


def _evaluated_cost(measured: Cost, rate: Rates, run: RunFolder | None) -> tuple[Cost, str]:
    """The mean cost over the images of an evaluation at this keep rate, or what was measured on noise."""
    for stored in evaluations(run) if run is not None else ():
        numbers = read_json(stored.folder / NUMBERS) if stored.keep_rate == rate else None
        computed = number((numbers or {}).get("computed_gmacs"), low=0)
        if computed is not None:
            found = replace(measured, gmacs=stored.gmacs, computed_gmacs=computed)
            return found, f"mean of up to 16 {stored.split} images"
    return measured, "noise; evaluate the run, and it is the mean of its images"


def load(models: Mapping[str, TokenReducedViT] | Sequence[str | Path], accelerator: Accelerator) -> list[ServedModel]:
    """The models to serve, the first of which answers requests that name none.

    Args:
        models: By name; or run folders, saved models and hub ids, which are called by their last part.
        accelerator: Device and precision.

    Raises:
        ClcaError: If there are none, or one cannot be loaded.
    """
    if isinstance(models, str | Path):
        models = [models]
    if not models:
        raise ClcaError("no model to serve: name a run folder")
    if isinstance(models, Mapping):
        return [ServedModel(name, model, accelerator) for name, model in models.items()]
    runs = {name: RunFolder(run) for name, run in _by_name(models).items()}
    return [ServedModel(name, run.load_model(), accelerator, run if run.exists else None) for name, run in runs.items()]


def _by_name(runs: Sequence[str | Path]) -> dict[str, str | Path]:
    found: dict[str, str | Path] = {}
    for run in runs:
        path = Path(run)
        if path.is_dir():
            path = path.resolve()
        stem = path.parent.name if path.name == "run" else path.name  # a study keeps its runs as NAME/run
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found[name] = run
    return found
