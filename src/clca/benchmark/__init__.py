"""How much faster a reduced model is than timm's own dense one, on this machine: `benchmark(config)`."""

from clca.benchmark.config import GROWTH, GROWTH_TRAINING, QUICK, TRAINING, BenchmarkConfig
from clca.benchmark.result import Benchmark, BenchmarkRow
from clca.benchmark.running import benchmark

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
