from .config import DataConfig, TrainConfig
from .trainer import RunResult, resume, train

__all__ = [
    "DataConfig",
    "RunResult",
    "TrainConfig",
    "resume",
    "train",
]
