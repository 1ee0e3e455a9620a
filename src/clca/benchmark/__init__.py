"""How much faster a reduced model is than timm's own dense one, on this machine: `benchmark(config)`."""

from clca.benchmark.config import GROWTH, QUICK, BenchmarkConfig
from clca.benchmark.result import Benchmark, Row
from clca.benchmark.running import benchmark

__all__ = ["GROWTH", "QUICK", "Benchmark", "BenchmarkConfig", "Row", "benchmark"]
