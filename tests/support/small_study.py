"""A study of a few runs on leaves in memory, for tests."""

from typing import Any

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


def small_plan(**changes: Any) -> Plan:
    content = {"name": "small", "base": BASE, "axes": {"reduction": ["evit", "tome"], "keep_rate": [0.5, 0.25]}}
    return plan(StudyConfig.model_validate({**content, "seeds": 2, **changes}))
