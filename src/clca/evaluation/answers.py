"""The answer for each image of an evaluation: the table, the surest mistakes, the probable label errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clca.evaluation.label_errors import LabelErrors
from clca.system.files import as_utf8, write_csv

TABLE, LABEL_ERRORS, MISTAKES = "predictions.csv", "label_errors.csv", "mistakes.jpg"
MOST_MISTAKES = 100


@dataclass(frozen=True)
class Answers:
    """The two most likely classes of every image, in the order of the data set.

    Attributes:
        paths: The files.
        labels: True classes, [N].
        predicted, second: The most likely class and the one after it, [N].
        probability, second_probability: Their probabilities, 0 … 1, [N].
        unfamiliarity: How far each is from the known classes, beyond 1 for one of none, [N]; None if that is not known.
        label_errors: Images whose label is probably wrong; None if there are too many probabilities to keep.
    """

    paths: Sequence[Path]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    second: np.ndarray
    second_probability: np.ndarray
    label_errors: LabelErrors | None = None
    unfamiliarity: np.ndarray | None = None

    def mistakes(self, most: int = MOST_MISTAKES) -> np.ndarray:
        """Positions of the images that are classified wrongly, by descending probability of the wrong class."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        order: np.ndarray = wrong[np.argsort(-self.probability[wrong], kind="stable")][:most]
        return order

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Write `predictions.csv` and `label_errors.csv`.

        Args:
            folder: An existing folder.
            names: Class names.

        Raises:
            WorkError: A file could not be written.
        """
        heads = ["path", "true_class", "predicted_class", "probability", "second_class", "second_probability"]
        columns = (self.paths, self.labels, self.predicted, self.probability, self.second, self.second_probability)
        known = self.unfamiliarity
        distances = [""] * len(self.labels) if known is None else [f"{one:.4f}" for one in known]
        rows = (
            [as_utf8(str(path)), names[label], names[first], f"{p:.6f}", names[second], f"{q:.6f}", distance]
            for path, label, first, p, second, q, distance in zip(*columns, distances, strict=True)
        )
        write_csv(folder / TABLE, [*heads, "unfamiliarity"], rows)
        heads = ["rank", "path", "given_class", "suggested_class", "margin", "predicted_class", "probability"]
        found = self.label_errors
        parts = (found.images, found.suggested, found.margin) if found is not None else ((), (), ())
        write_csv(
            folder / LABEL_ERRORS,
            heads,
            (
                [rank, as_utf8(str(self.paths[k])), names[self.labels[k]], names[suggested], f"{margin:.6f}",
                 names[self.predicted[k]], f"{self.probability[k]:.6f}"]
                for rank, (k, suggested, margin) in enumerate(zip(*parts, strict=True), start=1)
            ),
        )  # fmt: skip
