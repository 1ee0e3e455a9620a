from .config import GROWTH, GROWTH_TRAINING, QUICK, TRAINING, BenchmarkConfig
from .result import Benchmark, BenchmarkRow
from .running import benchmark

__all__ = [
    "GROWTH",
    "GROWTH_TRAINING",
    "QUICK",
    "TRAINING",
    "Benchmark",
    "BenchmarkConfig",
    "BenchmarkRow",
    "benchmark",
]
