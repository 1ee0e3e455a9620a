"""`clca export`."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field

from clca.cli.arguments import Arguments, KeepRate, Run, Spelling, Switch
from clca.cli.parsing import parse, refusing_useless_rate


class Export(Arguments):
    """Export a run as one file that runs without clca, with classes and preprocessing inside.

    The batch size is dynamic. The file is compared with PyTorch on the run's test images (or those of --images, or
    synthetic ones) first, and is not written if the answers differ.

    Examples:
      clca export runs/first
      clca export runs/first --to pt2 --out first.pt2
      clca export runs/first --int8 --images photos/
    """

    run: Run
    to: Literal["onnx", "pt2"] = Field(
        "onnx", description="onnx for ONNX Runtime and others, in any language; pt2 for torch.export.load."
    )
    out: Annotated[str | None, Spelling("FILE")] = Field(
        None, description="The file. If omitted: model.onnx, model-int8.onnx or model.pt2 in the run folder."
    )
    keep_rate: KeepRate = None
    int8: Switch = Field(
        False,
        description="Quantize the linear layers: a quarter of the size; accuracy and speed are compared here. ONNX "
        "only.",
    )
    images: tuple[str, ...] = Field(
        (), description="Files, folders or patterns of images for the check; at most 256 are used."
    )


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Export, "clca export", argv))
    from clca.export import export_run

    run_name = chosen.pop("run")
    with _sigterm_as_interrupt(), refusing_useless_rate(run_name, chosen["keep_rate"]):
        report = export_run(run_name, **chosen)
    print("\n".join(report.lines()))
    return 0


class _Terminated(KeyboardInterrupt):
    signal = signal.SIGTERM


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that temporary files go."""

    def end(number: int, frame: Any) -> None:
        raise _Terminated("stopped; nothing was written")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
