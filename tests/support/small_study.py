"""A study of a few runs on leaves in memory, for tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from clca.study.plan.config import StudyConfig
from clca.study.plan.expand import Plan, plan

BASE: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "pretrained": False,
    "data": "leaves:cultivars=3,images=5,size=40",
    "img_size": 32,
    "epochs": 1,
    "warmup_epochs": 0,
    "cooldown_epochs": 0,
    "batch_size": 3,
    "workers": 0,
    "precision": "no",
    "device": "cpu",
    "train_split": "train_val",
    "val_split": "none",
}


SMALL: dict[str, Any] = {
    "name": "small",
    "base": BASE,
    "axes": {"reduction": ["evit", "tome"], "keep_rate": [0.5, 0.25]},
    "seeds": 1,
}


def study_command(folder: Path, *words: str, study: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """A clca study command in a folder with a study.yaml."""
    (folder / "study.yaml").write_text(yaml.safe_dump({**SMALL, **(study or {})}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CLCA_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "clca", "study", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def small_plan(**changes: Any) -> Plan:
    return plan(StudyConfig.model_validate({**SMALL, "seeds": 2, **changes}))
