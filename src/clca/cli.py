"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

import contextlib
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from clca.errors import ClcaError, WorkError

if TYPE_CHECKING:
    from clca.training.prediction import Prediction

TRAIN_HELP = """Train a classifier with token reduction, and leave a run folder.

DATA is a folder with train/, val/ and test/ and one folder a class in each. The settings left away are the published
recipe. The same command again goes on where an interrupted run stopped.

Examples:
  clca train photos --model deit3_small_patch16_224.fb_in1k --reduction evit --keep-rate 0.1 --img-size 448
  clca train photos --model vit_small_patch14_dinov2 --img-size 224 --epochs 10 --batch-size 16
  clca train photos --model vit_tiny_patch16_224 --no-pretrained --out runs/first
  torchrun --nproc-per-node 4 -m clca train photos --model deit3_base_patch16_224.fb_in1k
  clca train --resume runs/first
"""


def train(argv: Sequence[str]) -> int:
    from clca.training import flags

    given = flags.read_file(_value_of("--config", argv)) if _value_of("--config", argv) else {}
    parsed = _parse(flags.arguments(given), "clca train", argv, TRAIN_HELP)
    from clca.training import resume
    from clca.training import train as run

    if parsed.resume is not None:
        result = resume(parsed.resume)
    else:
        config = flags.to_config(parsed, given)
        result = run(config)
    if int(os.environ.get("RANK", 0)) == 0:
        watched = f"top-1 {result.watched['top1']:.1%} on the watched images, " if result.watched else ""
        print(f"{result.folder}: {watched}weights: {result.kept} (epoch {result.kept_epoch} of {result.epochs})")
        print(f"next: clca evaluate {result.folder}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    import tyro

    def evaluate(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None,
        *,
        split: Literal["test", "val", "train", "train_val"] = "test",
        keep_rate: tuple[float, ...] = (),
        batch_size: int = 64,
        workers: int | None = None,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
        out: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate a run: accuracy, a table by class, the confusion matrix, cost and speed.

        The files go to RUN/evaluation.

        Examples:
          clca evaluate runs/first
          clca evaluate runs/first other_photos --split val
          clca evaluate runs/first --keep-rate 0.25

        Args:
            run: Run folder, or a saved model's folder or hub id.
            data: Other images than the run's own, of the same classes.
            split: Which part of the images.
            keep_rate: Keep this share of tokens, or one share a location, instead of what the run was trained with.
            batch_size: Images at once.
            workers: Processes that read images. Left away: one a core, at most 8.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
            out: Folder for the files.
        """
        return dict(locals())

    chosen = _parse(evaluate, "clca evaluate", argv)
    chosen["keep_rate"] = _rate(chosen["keep_rate"])
    from rich.console import Console

    from clca.training import evaluate as run_evaluation

    result = run_evaluation(chosen.pop("run"), chosen.pop("data"), chosen.pop("split"), **chosen)
    if int(os.environ.get("RANK", 0)) == 0:
        result.render(Console())
        if result.folder is not None:
            print(f"written to {result.folder}: evaluation.json, classes.csv, confusion.csv, confusion.png")
    return 0


def predict(argv: Sequence[str]) -> int:
    import tyro

    def predict(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES …")],
        *,
        top_k: int = 5,
        format: Literal["table", "csv", "jsonl"] = "table",
        out: str | None = None,
        keep_rate: tuple[float, ...] = (),
        batch_size: int = 32,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
    ) -> dict[str, Any]:
        """Say what is in photographs. Files that cannot be read are told and left out; the exit code is then 1.

        Examples:
          clca predict runs/first leaf.jpg
          clca predict runs/first photos/ 'more/*.png' --top-k 3
          find photos -name '*.jpg' | clca predict runs/first - --format jsonl --out answers.jsonl

        Args:
            run: Run folder, or a saved model's folder or hub id.
            images: Files, folders, patterns; - reads names from standard input, one a line.
            top_k: Classes to name for each image.
            format: A table to read, CSV, or one JSON object a line.
            out: File to write to instead of the terminal.
            keep_rate: Keep this share of tokens, or one share a location, instead of what the run was trained with.
            batch_size: Images at once.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
        """
        return dict(locals())

    chosen = _parse(predict, "clca predict", argv)
    names = [
        name
        for given in chosen["images"]
        for name in ((line.rstrip("\r\n") for line in sys.stdin) if given == "-" else [given])
        if name
    ]
    from clca.training import predict as classify
    from clca.training.answers import write_answers

    answers = classify(
        chosen["run"],
        names,
        chosen["top_k"],
        keep_rate=_rate(chosen["keep_rate"]),
        batch_size=chosen["batch_size"],
        device=chosen["device"],
        precision=chosen["precision"],
    )
    bad = 0

    def readable() -> Any:
        nonlocal bad
        answer: Prediction
        for answer in answers:
            if answer.error is None:
                yield answer
            else:
                bad += 1
                print(f"clca: {answer.path}: {answer.error}", file=sys.stderr)

    write_answers(readable(), chosen["format"], Path(chosen["out"]) if chosen["out"] else None)
    if bad:
        print(f"clca: {bad} of the files could not be read", file=sys.stderr)
    return 1 if bad else 0


def data(argv: Sequence[str]) -> int:
    """Look at a data set, or draw a synthetic one."""
    commands = {"check": (_data_check, "What is in a data set, and what is wrong with it"),
                "leaves": (_data_leaves, "Draw synthetic leaves into a folder")}  # fmt: skip
    return _dispatch("clca data", "Look at a data set, or draw a synthetic one.", commands, argv)


def _data_check(argv: Sequence[str]) -> int:
    import tyro

    def check(
        root: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")],
        *,
        source: str | None = None,
        workers: int | None = None,
    ) -> dict[str, Any]:
        """Read every image of a data set: classes, counts, sizes, and what is unreadable, near-empty or there twice.

        The exit code is 1 if something has to be mended before training.

        Examples:
          clca data check photos
          clca data check ultra_fgvc/Cotton80 --source cotton80

        Args:
            root: Folder or CSV file, as for clca train.
            source: How the data is laid out (folder, csv, cotton80 …). Found out if left away.
            workers: Threads that read. Left away: one a core, at most 16.
        """
        return dict(locals())

    chosen = _parse(check, "clca data check", argv)
    from rich.console import Console

    from clca.data.check import check as run_check

    report = run_check(chosen["root"], chosen["source"], workers=chosen["workers"])
    report.render(Console())
    return 1 if report.errors else 0


def _data_leaves(argv: Sequence[str]) -> int:
    import tyro

    def leaves(
        out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
        *,
        cultivars: int = 20,
        images: int = 30,
        size: int = 224,
        seed: int = 0,
        difficulty: float = 0.5,
    ) -> dict[str, Any]:
        """Draw leaves of made-up cultivars that differ in fine detail only, as a folder to train on.

        Examples:
          clca data leaves leaves
          clca data leaves leaves --cultivars 50 --images 40 --size 448 --difficulty 0.8

        Args:
            out: Folder to make.
            cultivars: Classes.
            images: Leaves of each, over train, val and test.
            size: Side of the images in pixels.
            seed: The same seed draws the same leaves.
            difficulty: 0 (cultivars far apart) to 1 (hardly to be told apart).
        """
        return dict(locals())

    chosen = _parse(leaves, "clca data leaves", argv)
    from clca.data.leaves import write_leaves

    write_leaves(**chosen)
    print(f"written to {chosen['out']}; next: clca train {chosen['out']} --model vit_tiny_patch16_224 --no-pretrained")
    return 0


def demo(argv: Sequence[str]) -> int:
    import tyro

    def demo(
        out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = "clca-demo", *, seed: int = 0
    ) -> dict[str, Any]:
        """See it work in under four minutes, without downloads: one small ViT, four ways, on synthetic leaves.

        Trains the same model dense, with EViT, with EViT and CLCA, and with ToMe and CLCA at a keep rate of 25 %,
        prints one table, and draws one picture of the tokens that survive.

        Args:
            out: Folder for the runs and the picture.
            seed: Another seed gives other leaves and other weights.
        """
        return dict(locals())

    chosen = _parse(demo, "clca demo", argv)
    import_module("clca.demo").run(Path(chosen["out"]), seed=chosen["seed"])
    return 0


Command = Callable[[Sequence[str]], int]

COMMANDS: dict[str, tuple[Command, str]] = {
    "demo": (demo, "See it work in four minutes, nothing downloaded"),
    "train": (train, "Train a model on your images"),
    "evaluate": (evaluate, "How good a run is, by class, and what it costs"),
    "predict": (predict, "What is in these photographs"),
    "data": (data, "Look at a data set (check), or draw a synthetic one (leaves)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what goes wrong ends in one line on stderr.

    Returns:
        0; 1 where the work failed, 2 where what was asked for is wrong, 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("CLCA_DEBUG", "") not in ("", "0")
    argv = [word for word in argv if word != "--debug"]
    try:
        return _dispatch("clca", "Token reduction with Cross-Layer Cache Aggregation on any timm ViT.", COMMANDS, argv)
    except KeyboardInterrupt as stop:
        _tell(str(stop) or "interrupted")
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on the way out)
        return 1
    except Exception as error:
        if debug:
            raise
        code, line = _line(error)
        _tell(line)
        return code


def _line(error: Exception) -> tuple[int, str]:
    """Exit code and line for an error: 2 for a wrong request, 1 for failed work."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ClcaError):
        return 2, text
    if isinstance(error, WorkError):
        return 1, text
    if type(error).__name__ == "ValidationError":
        from clca.training.flags import explain

        return 2, explain(error)  # type: ignore[arg-type]
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return 2, f"{error.filename}: {(error.strerror or text).lower()}"
    if isinstance(error, OSError):
        return 1, f"{error.filename}: {(error.strerror or text).lower()}" if error.filename else text
    if type(error).__name__ == "OutOfMemoryError":
        return 1, "the device has not enough memory: try a smaller --batch-size, --grad-accum 2 or --grad-checkpointing"
    return 1, f"{type(error).__name__}: {text} (--debug shows where)"


def _tell(line: str) -> None:
    """One line on stderr, from the first process of each machine."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"clca: {line}", file=sys.stderr)


def _dispatch(prog: str, summary: str, commands: Mapping[str, tuple[Command, str]], argv: Sequence[str]) -> int:
    """Call the command that `argv` names with the rest of it; or say what there is."""
    if argv and argv[0] in commands:
        return commands[argv[0]][0](argv[1:])
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in commands.items())
    usage = f"{summary}\n\nusage: {prog} COMMAND …\n\n{listed}\n\n{prog} COMMAND --help says more."
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage)
        return 0 if argv else 2
    if prog == "clca" and argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"clca {version('clca')}")
        return 0
    near = get_close_matches(argv[0], commands, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(commands)}"
    raise ClcaError(f"no command {argv[0]!r}: {hint}")


def _parse(what: Any, prog: str, argv: Sequence[str], description: str | None = None) -> Any:
    """Parse with tyro; a mistake becomes a ClcaError of one line instead of tyro's box."""
    import tyro

    if description is None:  # tyro would take the examples for a section of the docstring that it does not show
        description = inspect.cleandoc(what.__doc__).split("\nArgs:")[0]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            chosen, unknown = tyro.cli(
                what, prog=prog, args=list(argv), description=description, return_unknown_args=True
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ClcaError(f"{_without_box(told.getvalue())}; {prog} --help says more") from None
    if unknown:
        flags = re.findall(r"--[a-z][\w-]*", _help_of(what, prog, description))
        near = get_close_matches(unknown[0].split("=")[0].replace("_", "-"), flags, 1)
        hint = f"did you mean {near[0]}?" if near else f"{prog} --help lists what there is"
        raise ClcaError(f"{unknown[0]} is not understood: {hint}")
    return chosen


def _help_of(what: Any, prog: str, description: str | None) -> str:
    import tyro

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(what, prog=prog, args=["--help"], description=description)
    return told.getvalue()


def _without_box(text: str) -> str:
    """The words of tyro's report, without frame and without the pointer to --help that it ends with."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = " ".join(re.sub(r"[─│╭╮╰╯╴╶┌┐└┘├┤]+|-{3,}", " ", text).split())
    return re.split(r" For full helptext", text)[0]


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The value given to a flag, before the rest is parsed."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _rate(rates: tuple[float, ...]) -> float | tuple[float, ...] | None:
    if not rates:
        return None
    return rates[0] if len(rates) == 1 else rates
