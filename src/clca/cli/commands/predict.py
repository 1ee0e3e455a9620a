"""`clca predict`."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from clca.cli.parsing import parse, rate, refusing_useless_rate
from clca.system.paths import expanded, shown

if TYPE_CHECKING:
    from clca.evaluation.predictor import Prediction


def run(argv: Sequence[str]) -> int:
    import tyro

    def predict(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        images: Annotated[
            tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES …", help_behavior_hint="")
        ],
        *,
        top_k: int = 5,
        format: Literal["table", "csv", "jsonl"] = "table",
        out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
        explain: str | None = None,
        keep_rate: tuple[float, ...] = (),
        batch_size: int = 32,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
        compile: bool = False,
    ) -> dict[str, Any]:
        """Say what is in photographs. Files that cannot be read are told and left out; the exit code is then 1.

        Examples:
          clca predict runs/first leaf.jpg
          clca predict runs/first photos/ 'more/*.png' --top-k 3
          clca predict runs/first photos/ --explain seen
          find photos -name '*.jpg' | clca predict runs/first - --format jsonl --out answers.jsonl

        Args:
            run: Run folder, or a saved model's folder or hub id.
            images: Files, folders, patterns; - reads names from standard input, one a line.
            top_k: Classes to name for each image.
            format: A table to read, CSV, or one JSON object a line.
            out: File to write to instead of the terminal.
            explain: Folder for a figure (PNG) and its numbers (JSON) of every image: what each reduction kept or
                merged, where the model looked, and what decided.
            keep_rate: Keep this share of tokens, or one share a location, instead of what the run was trained with.
            batch_size: Images at once.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
            compile: Compile the model first: a minute at the start, then faster. Needs a C++ compiler.
        """
        return dict(locals())

    chosen = parse(predict, "clca predict", argv)
    if isinstance(sys.stdin, io.TextIOWrapper):  # file names are bytes, of any encoding
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")
    names = [
        name
        for given in chosen["images"]
        for name in ((line.rstrip("\r\n") for line in sys.stdin) if given == "-" else [given])
        if name
    ]
    from clca.errors import ClcaError
    from clca.evaluation import predict as classify
    from clca.evaluation.prediction_files import write_answers
    from clca.evaluation.predictor import find_images
    from clca.training.run_folder import refuse_run_file

    out = Path(chosen["out"]) if chosen["out"] else None
    if out is not None:
        refuse_run_file(out, Path(chosen["run"]))
        images = find_images(names)
        if os.path.realpath(out) in map(os.path.realpath, images):
            raise ClcaError(f"--out {out}: is one of the images; choose another name")
        names = [str(image) for image in images]
    model, explanations, keep_rate = chosen["run"], None, rate(chosen["keep_rate"])
    if chosen["explain"] is not None:
        from clca.evaluation.explanation_files import ExplanationFiles
        from clca.models.pretrained import from_pretrained

        explanations = ExplanationFiles(expanded(chosen["explain"]))
        model = from_pretrained(model)
    with refusing_useless_rate(chosen["run"], keep_rate):
        answers = classify(
            model,
            names,
            chosen["top_k"],
            keep_rate=keep_rate,
            batch_size=chosen["batch_size"],
            device=chosen["device"],
            precision=chosen["precision"],
            compile=chosen["compile"],
        )
    bad = 0

    def readable() -> Any:
        nonlocal bad
        answer: Prediction
        for answer in answers:
            error = answer.error
            if error is None and explanations is not None:
                try:
                    explanations.write(model, answer.path)
                except ClcaError as unreadable:  # it was there a moment ago
                    error = str(unreadable).removeprefix(f"{answer.path}: ")
            if error is None:
                yield answer
            else:
                bad += 1
                print(f"clca: {shown(answer.path)}: {error}", file=sys.stderr)

    write_answers(readable(), chosen["format"], out)
    if explanations is not None:
        print(f"what it looked at is in {explanations.folder}", file=sys.stderr)
    if bad:
        print(f"clca: {bad} of the files could not be read", file=sys.stderr)
    return 1 if bad else 0
