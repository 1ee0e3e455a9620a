"""`clca benchmark`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clca.benchmark.config import GROWTH, GROWTH_TRAINING, QUICK, TRAINING, BenchmarkConfig
from clca.cli.arguments import Switch, like
from clca.cli.parsing import parse


class Benchmark(BenchmarkConfig):
    """Measure how much faster token reduction is than timm's own dense ViT on this machine.

    All candidates run in turn, round after round, and are compared within a round. The table gives the median and the
    10th and 90th percentile; the lines below it name the settings in which a reduction loses. Ctrl-C keeps what was
    measured. With --training batches hold 8 images unless --batch-sizes is given.

    Examples:
      clca benchmark --quick
      clca benchmark --models vit_base_patch16_224 --reductions evit topk --batch-sizes 1 --precisions fp32 bf16
      clca benchmark --modes eager compiled onnx --reductions evit --keep-rates 0.25
      clca benchmark --training --reductions evit topk
      clca benchmark --growth --reductions evit
      clca benchmark --models runs/first --keep-rates 1 0.5 0.1
    """

    training: Switch = like(BenchmarkConfig, "training")
    memory: Literal["auto", "yes", "no"] = Field(  # type: ignore[assignment]
        "auto",
        description="Measure peak memory too, each candidate alone in a fresh process. auto: yes, but not with "
        "`quick`.",
    )
    quick: Switch = Field(
        False,
        description="All reductions at 224 px and two keep rates, without memory, in under two minutes on two cores.",
    )
    growth: Switch = Field(
        False,
        description="Measure how time and memory grow with the number of patches: 224, 448 and 896 px at keep rate "
        "0.1, one image per batch (two with `training`).",
    )
    out: Path = Field(
        Path("clca-benchmark"), description="Folder for benchmark.json, benchmark.csv, speedup.png and speedup.pdf."
    )


def run(argv: Sequence[str]) -> int:
    chosen = parse(Benchmark, "clca benchmark", argv)
    from rich.console import Console

    from clca.benchmark import benchmark as measure
    from clca.system.files import make_writable

    given: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in chosen.model_fields_set & BenchmarkConfig.model_fields.keys() - {"memory"}
    }
    if chosen.memory != "auto":
        given["memory"] = chosen.memory == "yes"
    preset: dict[str, Any] = (QUICK if chosen.quick else {}) | (GROWTH if chosen.growth else {})
    if chosen.training:
        preset |= GROWTH_TRAINING if chosen.growth else TRAINING
    make_writable(chosen.out)
    result = measure(BenchmarkConfig(**{**preset, **given}))
    if result.rows:
        result.render(Console())
        print(f"written to {chosen.out}: {', '.join(path.name for path in result.write(chosen.out))}")
    if result.interrupted:
        raise KeyboardInterrupt("interrupted; the rounds until then are kept" if result.rows else "interrupted")
    return 0 if any(row.milliseconds for row in result.rows) else 1
