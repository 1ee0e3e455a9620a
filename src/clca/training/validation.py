"""Run a model on every image of a split, and compute accuracy and loss."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clca.data.transforms import Normalization
from clca.kernels.prepack import prepacked
from clca.models.confidence import Confidence, read_by_head
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT


@dataclass
class InferenceResult:
    """Predictions for all images of a split, from all processes, each image once.

    Attributes:
        labels: True classes, [N].
        ranked: The most likely classes, best first, [N, k], k = min(5, classes). Ties, which occur in half precision,
            are broken by the lower index, as in `argmax`.
        loss: Mean cross-entropy.
        images_per_second: Throughput of the forward pass alone, summed over processes; valid only with `measure`.
        ranked_probabilities: Those of the classes in `ranked`, [N, k].
        probabilities: Those of all classes, [N, K]; only if they were asked for.
        uncalibrated: Probability of the most likely class before calibration, [N].
        unfamiliarity: [N]; only with a confidence.
    """

    labels: Tensor
    ranked: Tensor
    loss: float
    images_per_second: float
    ranked_probabilities: Tensor | None = None
    probabilities: Tensor | None = None
    uncalibrated: Tensor | None = None
    unfamiliarity: Tensor | None = None

    def top(self, k: int) -> float:
        """Top-k accuracy, 0 … 1."""
        return (self.ranked[:, :k] == self.labels[:, None]).any(1).double().mean().item()

    def macro_accuracy(self) -> float:
        """Mean recall over the classes that occur, 0 … 1."""
        from sklearn.metrics import recall_score  # late: scikit-learn imports SciPy, which takes half a second

        present = self.labels.unique().tolist()
        return float(recall_score(self.labels, self.ranked[:, 0], labels=present, average="macro", zero_division=0))

    def summary(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "top1": self.top(1),
            "top5": self.top(5),
            "macro": self.macro_accuracy(),
            "images": len(self.labels),
        }


@torch.no_grad()
def run_inference(
    model: TokenReducedViT,
    loader: DataLoader,
    accelerator: Accelerator,
    measure: bool = False,
    *,
    probabilities: bool = False,
    confidence: Confidence | None = None,
    progress: Callable[[int], None] | None = None,
) -> InferenceResult:
    """Run an unwrapped model in evaluation mode on this process's share of a split, and gather all shares.

    Args:
        model: Maps images [B, 3, S, S], normalised by its `preprocess`, to logits [B, K]; its mode is restored.
        loader: This process's images (`loaders.eval_loader`).
        accelerator: Device, precision and processes.
        measure: Time the first batch again after warming up, so that `images_per_second` is valid.
        probabilities: Return those of all classes.
        confidence: That of the model's keep rate: probabilities are calibrated by it, and unfamiliarity is returned.
        progress: Called with the number of images of this process that are done, after each batch.
    """
    was_training = model.training
    model.eval()
    device, normalize = accelerator.device, Normalization(model.preprocess or {})
    labels, ranked, losses = [], [], torch.zeros((), dtype=torch.float64)
    likely: list[Tensor] = []
    uncalibrated: list[Tensor] = []
    distances: list[Tensor] = []
    confidence = confidence.to(device) if confidence is not None else None
    all_classes: list[Tensor] = []
    done = 0
    timed_images, timed_seconds = 0, 0.0
    with prepacked(model):
        for number, (images, targets) in enumerate(loader):
            images, targets = normalize(images, device), targets.to(device, non_blocking=True)
            _synchronize(device)
            begin = perf_counter()
            with accelerator.autocast():
                if confidence is None:
                    logits = model(images)
                else:
                    features = model.forward_features(images)
                    logits = model.forward_head(features)
            _synchronize(device)
            if measure and not number:  # the first batch is a warm-up, and timed again in case it is the only one
                _synchronize(device)
                begin = perf_counter()
                with accelerator.autocast():
                    model(images)
                _synchronize(device)
            timed_images, timed_seconds = timed_images + len(images), timed_seconds + perf_counter() - begin
            logits = logits.float()
            losses += F.cross_entropy(logits, targets, reduction="sum").double().cpu()
            labels.append(targets.cpu())
            best = most_likely(logits, 5)[1]
            ranked.append(best.cpu())
            shares_of_all = logits.softmax(1)
            uncalibrated.append(shares_of_all.amax(1).cpu())
            if confidence is not None:
                shares_of_all = confidence.probabilities(logits)
                distances.append(confidence(read_by_head(model, features)).cpu())
            likely.append(shares_of_all.gather(1, best).cpu())
            if probabilities:
                all_classes.append(shares_of_all.cpu())
            done += len(images)
            if progress is not None:
                progress(done)
    model.train(was_training)
    own = None
    if labels:
        of_all = torch.cat(all_classes) if all_classes else None
        own = (
            torch.cat(labels), torch.cat(ranked), losses, timed_images, timed_seconds, torch.cat(likely), of_all,
            torch.cat(uncalibrated), torch.cat(distances) if distances else None,
        )  # fmt: skip
    shares = [share for share in gather_object([own]) if share is not None]
    all_labels = torch.cat([share[0] for share in shares])
    rate = sum(share[3] / share[4] for share in shares if share[4] > 0)
    return InferenceResult(
        labels=all_labels,
        ranked=torch.cat([share[1] for share in shares]),
        loss=float(sum(share[2] for share in shares)) / len(all_labels),
        images_per_second=rate,
        ranked_probabilities=torch.cat([share[5] for share in shares]),
        probabilities=torch.cat([share[6] for share in shares]) if probabilities else None,
        uncalibrated=torch.cat([share[7] for share in shares]),
        unfamiliarity=torch.cat([share[8] for share in shares]) if confidence is not None else None,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
