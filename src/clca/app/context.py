"""What all tabs of the page share: the models, their examples and evaluations, and the language."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from clca.app.examples import Examples
from clca.app.i18n import Translator, Words
from clca.app.inference import Look, PhotoInference
from clca.app.settings import PageSettings
from clca.app.upload_folder import upload_folder
from clca.errors import ClcaError
from clca.evaluation.stored import StoredEvaluation, evaluations
from clca.serve.errors import Refusal
from clca.serve.served_model import Rates, ServedModel
from clca.serve.service import Service

_log = logging.getLogger("clca.app")


class PageContext:
    """The page's models by name, and what is known of them.

    Args:
        service: With the models.
        settings: Of the page.

    Raises:
        ClcaError: The folder of examples has none of a model's classes.
    """

    def __init__(self, service: Service, settings: PageSettings) -> None:
        self.service, self.settings = service, settings
        self.inference = PhotoInference(service)
        self.words = Words(*([settings.words] if settings.words is not None else []))
        self.names = list(service.models)
        self._examples = {name: Examples(model, settings.examples) for name, model in service.models.items()}
        if settings.examples is not None:
            for name, model in service.models.items():
                if not any(self._examples[name].of(each) for each in model.classes):
                    raise ClcaError(f"{settings.examples}: holds no image of a class of {name}, so none can be shown")

    def model(self, name: str | None) -> ServedModel:
        """By name; the first where a browser names one that is gone."""
        return self.service.models.get(name or "", self.service.find(None))

    def shown_rate(self, served: ServedModel) -> float:
        """Where the slider of a model stands at first; the mean where it has a rate a location."""
        own = served.keep_rate
        return round(statistics.fmean(own) if isinstance(own, tuple) else own, 4)

    def rates(self, served: ServedModel, slider: float | None) -> Rates:
        """What a slider asks for."""
        if slider is None or not served.keep_rate_is_free or abs(slider - self.shown_rate(served)) < 1e-6:
            return served.keep_rate
        return min(max(float(slider), 0.01), 1.0)

    async def examples(self, served: ServedModel, classes: Sequence[str]) -> dict[str, Sequence[str]]:
        """Pictures of classes, by name."""
        if not self.settings.show_examples:
            return {}
        return await asyncio.to_thread(lambda: {name: self._examples[served.name].of(name) for name in classes})

    def evaluations(self, served: ServedModel) -> list[StoredEvaluation]:
        """Of one split: the test images, or the first that there are."""
        found = evaluations(served.run) if served.run is not None else []
        return [each for each in found if each.split == found[0].split]

    async def look(self, name: str | None, slider: float | None, photo: str) -> tuple[ServedModel, Look]:
        """What a model makes of an uploaded photograph."""
        served = self.model(name)
        image = await self.inference.open(Path(photo))
        return served, await self.inference.look(served, self.rates(served, slider), image)


def error_text(tr: Translator, error: Exception, refused: str = "error_image") -> str:
    """What went wrong, for people; `refused` is the sentence for what cannot be read."""
    if isinstance(error, Refusal):
        if error.code in ("busy", "stopping"):
            return tr("error_busy")
        if error.code == "gone":
            return tr("error_gone")
        return tr(refused, reason=error.message)
    _log.error("the page failed", exc_info=error)
    return tr("error_failed")


def new_file(name: str) -> Path:
    """A path for a file that the page offers, in a folder of its own that is kept as long as uploads are."""
    return Path(mkdtemp(dir=upload_folder().path)) / name


def translator(context: PageContext, request: Any) -> Translator:
    """In the language of the browser."""
    return context.words.translator(request.headers if request is not None else {})
