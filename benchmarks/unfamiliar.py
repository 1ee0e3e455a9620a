"""What becomes of photographs of no known class: how many are turned away, and how calibrated the answers are.

For each pair of held-out classes a run is trained on the others; the held-out classes (all their photographs) and those
of other sets are strangers. Prints and writes, for each set: the share of known test images and of strangers that the
run turns away, the area under the ROC curve of its score, and the same for scores that were not taken (one minus the
largest probability), each at the limit that 5 % of the known test images exceed; and the calibration error.

    python benchmarks/unfamiliar.py OUT rice_bd8 --strangers grapevine_leaves5 --hold-out BD30,BR22 BD72,BINADHAN7 \\
        -- --model vit_small_patch14_dinov2 --weights FILE --img-size 224 --reduction evit --keep-rate 0.25

Everything after -- goes to `clca train`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import clca
from clca.data.transforms import from_preprocess
from clca.models.confidence import ModelWithConfidence
from clca.training.confidence import calibration_error


def linked(data: Path, out: Path, left_out: set[str]) -> Path:
    """A data set of links to the classes of another but those left out."""
    for split in ("train", "val", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
        for folder in sorted((data / split).iterdir()):
            target = out / split / folder.name
            if folder.is_dir() and folder.name not in left_out and not target.exists():
                os.symlink(folder.resolve(), target)
    return out


def photographs(
    data: Path, classes: set[str] | None = None, splits: tuple[str, ...] = ("train", "val", "test")
) -> list[Path]:
    return [
        path
        for split in splits
        for folder in sorted((data / split).iterdir())
        if folder.is_dir() and (classes is None or folder.name in classes)
        for path in sorted(folder.iterdir())
    ]


def judged(model: clca.TokenReducedViT, paths: list[Path]) -> dict[str, np.ndarray]:
    """Logits and unfamiliarity of photographs, in batches of 16."""
    from clca.data.images import read_image

    assert model.confidence is not None
    found = model.confidence.at(model.keep_rate)
    assert found is not None
    whole, transform = ModelWithConfidence(model, found), from_preprocess(model.preprocess or {})
    results = []
    with torch.inference_mode():
        for start in range(0, len(paths), 16):
            batch = torch.stack([transform(read_image(path)) for path in paths[start : start + 16]])
            results.append(whole(batch))
    logits, unfamiliarity = (torch.cat(parts) for parts in zip(*results, strict=True))
    probabilities = found.probabilities(logits)
    return {
        "logits": logits.numpy(),
        "unfamiliarity": unfamiliarity.numpy(),
        "1 - probability": 1 - probabilities.amax(1).numpy(),
        "energy": -torch.logsumexp(logits, 1).numpy(),
    }


def area(known: np.ndarray, strange: np.ndarray) -> float:
    """Probability that a stranger has the higher score."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(known) + [1] * len(strange), np.concatenate([known, strange])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--strangers", type=Path, nargs="*", default=[])
    parser.add_argument("--hold-out", nargs="*", default=[""], help="classes with commas, one run for each")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    given, settings = parser.parse_args(words[:place]), words[place + 1 :]
    lines = []
    for held in given.hold_out:
        left_out = set(filter(None, held.split(",")))
        name = held.replace(",", "-") or "all"
        data = linked(given.data, given.out / name / "data", left_out)
        run = given.out / name / "run"
        subprocess.run([sys.executable, "-m", "clca", "train", str(data), *settings, "--out", str(run)], check=True)
        model = clca.from_pretrained(run)
        test = photographs(data, splits=("test",))
        known = judged(model, test)
        labels = torch.tensor([(model.classes or []).index(path.parent.name) for path in test])
        logits = torch.from_numpy(known["logits"])
        assert model.confidence is not None
        temperature = model.confidence.each[0].temperature
        line = {
            "held out": held,
            "top1": float((logits.argmax(1) == labels).float().mean()),
            "temperature": float(temperature),
            "ece before": calibration_error(logits.softmax(1).amax(1), logits.argmax(1) == labels),
            "ece": calibration_error((logits / temperature).softmax(1).amax(1), logits.argmax(1) == labels),
            "known turned away": float((known["unfamiliarity"] > 1).mean()),
        }
        strangers = {str(other.name): photographs(other) for other in given.strangers}
        if left_out:
            strangers["held-out classes"] = photographs(given.data, left_out)
        for kind, paths in strangers.items():
            strange = judged(model, paths)
            line[f"{kind}: turned away"] = float((strange["unfamiliarity"] > 1).mean())
            for score in ("unfamiliarity", "1 - probability", "energy"):
                limit = np.quantile(known[score], 0.95)
                line[f"{kind}: {score}, area"] = area(known[score], strange[score])
                line[f"{kind}: {score}, at 5 %"] = float((strange[score] > limit).mean())
        lines.append(line)
        sys.stdout.write(f"{json.dumps(line)}\n")
        sys.stdout.flush()
    mean = {name: statistics.fmean(line[name] for line in lines) for name in lines[0] if name != "held out"}
    for name, value in mean.items():
        sys.stdout.write(f"{name:50} {value:.3f}\n")
    (given.out / "unfamiliar.json").write_text(json.dumps({"runs": lines, "mean": mean}, indent=2) + "\n")


if __name__ == "__main__":
    main()
