"""The folder in which the manual's commands are run: photographs and finished runs of the names that its pages use."""

import csv
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock
from PIL import Image

from clca.cli.main import main
from clca.data.synthetic.leaves import write_leaves

TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
SIZE = 32
MODEL = "vit_tiny_patch16_224"
"""Stands in for every model that a page names, with the sizes of `TINY`."""

TINY_SETTINGS = "tiny.yaml"
WEIGHTS = "dinov2_s_saliency.safetensors"
STUDY = {
    "name": "my-study",
    "base": {"data": "photos"},
    "axes": {"reduction": ["evit", "tome"], "keep_rate": [0.5]},
    "keep": "all",
}
LEAVES = re.compile(r"leaves:cultivars=\d+,images=\d+,size=\d+")
"""Drawn leaves that a study of a page names; a few small ones stand in for them."""
SMALL_RUN = {
    "model": MODEL, "backbone_kwargs": TINY, "img_size": SIZE, "epochs": 1, "warmup_epochs": 0,
    "cooldown_epochs": 0, "batch_size": 8, "lr": 0.001,
    "pretrained": False, "precision": "no", "device": "cpu", "workers": 0,
}  # fmt: skip


def copy_of(prepared: Path, folder: Path) -> Path:
    """A scratch folder of one's own, from `prepared`, which the first who asks makes for all processes of a session."""
    with FileLock(f"{prepared}.lock"):
        if not prepared.exists():
            making = prepared.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            here = Path.cwd()
            os.chdir(making)
            try:
                _make()
            finally:
                os.chdir(here)
            making.rename(prepared)
    return shutil.copytree(prepared, folder, dirs_exist_ok=True)


def _make() -> None:
    """Everything that a page takes for granted, below the working folder."""
    write_leaves(Path("photos"), cultivars=3, images=8, size=40, seed=0, difficulty=0)
    photographs = sorted(Path("photos").rglob("*.png"))
    Path("new").mkdir()
    for number, path in enumerate(photographs[:3]):
        Image.open(path).convert("RGB").save(Path("new") / ("leaf.jpg" if number == 0 else f"IMG_{number}.jpg"))
    shutil.copy("new/leaf.jpg", "leaf.jpg")
    shutil.copy(photographs[4], "other.png")
    with Path("photos.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        rows.writerows([path.as_posix(), path.parent.name, path.parts[1]] for path in photographs)
    _cotton80(Path("ultra_fgvc/cotton80"))
    Path(TINY_SETTINGS).write_text(yaml.safe_dump({"model": {"backbone_kwargs": TINY, "img_size": SIZE}}))
    write_study(STUDY)
    for name, reduction in (("first", "evit"), ("second", "topk")):
        _run(name, reduction)
    shutil.copytree("runs/first", "runs/vines")
    shutil.copy("runs/first/model.safetensors", WEIGHTS)


def _run(name: str, reduction: str) -> None:
    flags = [f"--{key.replace('_', '-')}" for key in ("img_size", "batch_size", "lr", "precision", "device", "workers")]
    values = [str(SMALL_RUN[flag.strip("-").replace("-", "_")]) for flag in flags]
    argv = [word for pair in zip(flags, values, strict=True) for word in pair]
    argv = ["photos", "--model", MODEL, "--no-pretrained", "--config", TINY_SETTINGS, "--epochs", "2", *argv]
    _call(["train", *argv, "--reduction", reduction, "--keep-rate", "0.5", "--out", f"runs/{name}"])
    _call(["evaluate", f"runs/{name}", "--device", "cpu", "--workers", "0"])


def _call(argv: Sequence[str]) -> None:
    if code := main([*argv, "--debug"]):
        raise RuntimeError(f"clca {' '.join(argv)} ended with {code}")


def write_study(content: dict) -> Path:
    """A study of that content, as a file of its name: tiny models, one seed."""
    base = {name: value for name, value in content.get("base", {}).items() if name not in ("weights", "recipe")}
    small = {**content, "base": {**base, **SMALL_RUN}, "seeds": [0]}
    data = content.get("axes", {}).get("data")
    if isinstance(data, list):
        small["axes"] = content["axes"] | {"data": [LEAVES.sub("leaves:cultivars=2,images=5,size=37", d) for d in data]}
    path = Path(f"{content['name']}.yaml")
    path.write_text(yaml.safe_dump(small))
    return path


def _cotton80(root: Path) -> None:
    """Grey squares in the published layout and numbers: 80 classes, three training and three test images of each."""
    (root / "images").mkdir(parents=True)
    (root / "anno").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = []
        for label in range(1, 81):
            for number in range(1, 4):
                name = f"{label}_{number}_{split}.png"
                Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / "images" / name)
                lines.append(f"{name} {label}")
        (root / "anno" / f"{split}.txt").write_text("\n".join(lines) + "\n")
