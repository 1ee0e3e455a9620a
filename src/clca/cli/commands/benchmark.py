"""`clca benchmark`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from clca.cli.parsing import parse


def run(argv: Sequence[str]) -> int:
    import tyro

    def benchmark(
        *,
        models: tuple[str, ...] = (),
        reductions: tuple[str, ...] = (),
        keep_rates: tuple[float, ...] = (),
        img_sizes: tuple[int, ...] = (),
        batch_sizes: tuple[int, ...] = (),
        precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = (),
        modes: tuple[Literal["eager", "cudagraph", "compiled", "onnx"], ...] = (),
        quick: tyro.conf.FlagCreatePairsOff[bool] = False,
        growth: tyro.conf.FlagCreatePairsOff[bool] = False,
        training: tyro.conf.FlagCreatePairsOff[bool] = False,
        cla: bool = True,
        clc: bool = True,
        minutes: float | None = None,
        rounds: int | None = None,
        threads: int | None = None,
        memory: Literal["auto", "yes", "no"] = "auto",
        device: Literal["auto", "cpu"] = "auto",
        out: str = "clca-benchmark",
    ) -> dict[str, Any]:
        """Measure how much faster token reduction is than a dense ViT on this machine.

        All candidates run in turn, round after round, and are compared within a round: with timm's own dense model, and
        with this library's, which runs the same kernels as a reduced one and so shows what the reduction alone gives.
        The table gives the median and the 10th and 90th percentile; lines below it list where a reduction loses. Ctrl-C
        keeps what was measured.

        Examples:
          clca benchmark --quick
          clca benchmark --models vit_base_patch16_224 --reductions evit topk --batch-sizes 1 --precisions fp32 bf16
          clca benchmark --modes eager compiled onnx --reductions evit --keep-rates 0.25
          clca benchmark --training --reductions evit topk
          clca benchmark --growth --reductions evit
          clca benchmark --models runs/first --keep-rates 1 0.5 0.1

        Args:
            models: timm ViTs, with random weights, or run folders, with theirs. If omitted: vit_small_patch16_224.
            reductions: If omitted: all. A run is measured with its own.
            keep_rates: Shares of tokens kept. If omitted: 0.7 0.5 0.25 0.1, and what a run was trained with.
            img_sizes: Pixels a side. If omitted: 448. A run is measured at its own.
            batch_sizes: Images at once. If omitted: 8 1; with --training 8.
            precisions: fp32, or bf16 or fp16 by autocast. If omitted: fp32.
            modes: eager, cudagraph (captured and replayed, on a GPU), compiled by torch.compile, or onnx (in ONNX
                Runtime, in fp32 and not with --training). If omitted: eager.
            quick: All reductions at 224 px and two keep rates, without memory, in under two minutes on two cores.
            growth: 224, 448 and 896 px, batch 1 (with --training 2), keep rate 0.1: exponents of time and memory in the
                number of patches.
            training: Measure training steps (forward, backward, AdamW) instead of inference; the aggregation head needs
                two images at once.
            cla: Cross-Layer Aggregation head.
            clc: Cross-Layer Cache.
            minutes: Time to fill with rounds, at least three. If omitted: 10.
            rounds: This many rounds instead, however long they take.
            threads: Of the CPU. If omitted: as many as torch takes.
            memory: Measure peak memory too, each candidate alone in a fresh process. auto: yes, but not with --quick.
            device: auto takes the GPU if there is one.
            out: Folder for benchmark.json, benchmark.csv, speedup.png and speedup.pdf.
        """
        return dict(locals())

    chosen = parse(benchmark, "clca benchmark", argv)
    out = Path(chosen.pop("out"))
    from rich.console import Console

    from clca.benchmark import GROWTH, GROWTH_TRAINING, QUICK, TRAINING, BenchmarkConfig
    from clca.benchmark import benchmark as measure
    from clca.system.files import make_writable

    given = {name: value for name, value in chosen.items() if value is not None and value != ()}
    quick, growth = given.pop("quick"), given.pop("growth")
    preset = (QUICK if quick else {}) | (GROWTH if growth else {})
    if given["training"]:
        preset |= GROWTH_TRAINING if growth else TRAINING
    weigh = given.pop("memory")
    if weigh != "auto":
        given["memory"] = weigh == "yes"
    config = BenchmarkConfig(**{**preset, **given})
    make_writable(out)
    result = measure(config)
    if result.rows:
        result.render(Console())
        print(f"written to {out}: {', '.join(path.name for path in result.write(out))}")
    if result.interrupted:
        raise KeyboardInterrupt("interrupted; the rounds until then are kept" if result.rows else "interrupted")
    return 0 if any(row.milliseconds for row in result.rows) else 1
