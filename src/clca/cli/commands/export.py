"""`clca export`."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from clca.cli.parsing import parse, rate, refusing_useless_rate


def run(argv: Sequence[str]) -> int:
    import tyro

    def export(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        *,
        to: Literal["onnx", "pt2"] = "onnx",
        out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
        keep_rate: tuple[float, ...] = (),
        int8: tyro.conf.FlagCreatePairsOff[bool] = False,
        images: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Write a run as one file that runs without clca, with classes and preprocessing inside.

        The file takes any number of images at once. Before it is put in its place it is run beside PyTorch on the run's
        test images (or those you name, or synthetic ones), and refused if the answers differ.

        Examples:
          clca export runs/first
          clca export runs/first --to pt2 --out first.pt2
          clca export runs/first --int8 --images photos/

        Args:
            run: Run folder, or a saved model's folder or hub id.
            to: onnx for ONNX Runtime and others, in any language; pt2 for torch.export.load.
            out: The file. If omitted: model.onnx, model-int8.onnx or model.pt2 in the run folder.
            keep_rate: Keep this share of tokens, or one share a location, instead of what the run was trained with.
            int8: Quantise the linear layers: a quarter of the size; says what it costs and gains here. ONNX only.
            images: Files, folders or patterns to check on; at most 256 images are looked at.
        """
        return dict(locals())

    chosen = parse(export, "clca export", argv)
    chosen["keep_rate"] = rate(chosen["keep_rate"])
    from clca.export import export_run

    def tell(line: str) -> None:
        print(f"{line} …", file=sys.stderr)

    run_name = chosen.pop("run")
    with _tidy_end(), refusing_useless_rate(run_name, chosen["keep_rate"]):
        report = export_run(run_name, **chosen, tell=tell)
    print("\n".join(report.lines()))
    return 0


class _Ended(KeyboardInterrupt):
    signal = signal.SIGTERM


@contextmanager
def _tidy_end() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that temporary files go."""

    def end(number: int, frame: Any) -> None:
        raise _Ended("stopped; nothing was written")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
