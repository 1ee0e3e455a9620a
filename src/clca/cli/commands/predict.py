"""`clca predict`."""

import codecs
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from clca.cli.arguments import Arguments, Device, KeepRate, Precision, Run, Spelling
from clca.cli.parsing import parse, refusing_useless_rate
from clca.system.paths import as_text, expanded, shown

if TYPE_CHECKING:
    from clca.data.sources.photographs import Photographs


class Predict(Arguments):
    """Classify photographs. Files that cannot be read get a row with the reason; the exit code is then 1.

    Examples:
      clca predict runs/first leaf.jpg
      clca predict runs/first photos/ 'more/*.png' --top-k 3
      clca predict runs/first photos/ --explain seen
      clca predict runs/first photos/ --together 'plant([0-9]+)'
      find photos -name '*.jpg' | clca predict runs/first - --format jsonl --out answers.jsonl
    """

    run: Run
    images: Annotated[tuple[str, ...], Spelling("IMAGES", positional=True)] = Field(
        description="Files, folders or patterns; - reads names from standard input, one per line."
    )
    top_k: int = Field(5, description="Classes to list for each image.")
    together: Annotated[str | None, Spelling("GROUPS")] = Field(
        None,
        description="One answer for all photographs of a plant: folder, for those in one folder; a regular expression, "
        "for those in whose path its parentheses match the same; or a column, where IMAGES is a CSV file with that "
        "column and path.",
    )
    format: Literal["table", "csv", "jsonl"] = Field(
        "table", description="A table to read, CSV, or one JSON object per line."
    )
    out: Annotated[str | None, Spelling("FILE")] = Field(None, description="File to write to instead of the terminal.")
    explain: Annotated[str | None, Spelling("FOLDER")] = Field(
        None,
        description="Folder for a figure (PNG) and its numbers (JSON) for every image: which tokens each reduction "
        "kept or merged, where the model attended, and what decided the class.",
    )
    keep_rate: KeepRate = None
    batch_size: int = Field(32, description="Images per batch.")
    device: Device = "auto"
    precision: Precision = "auto"
    compile: bool = Field(
        False, description="Compile the model first: a minute at the start, then faster. Needs a C++ compiler."
    )


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Predict, "clca predict", argv))
    names = [name for given in chosen["images"] for name in (names_from_stdin() if given == "-" else [given]) if name]
    from clca.data.sources.photographs import Photographs, find_photographs
    from clca.errors import ClcaError
    from clca.evaluation import predict as classify
    from clca.evaluation.prediction_files import write_predictions
    from clca.evaluation.predictor import Prediction
    from clca.training.run_folder import refuse_run_file

    out = Path(chosen["out"]) if chosen["out"] else None
    images: list[str] | Photographs = names
    if out is not None:
        refuse_run_file(out, Path(chosen["run"]))
        images = find_photographs(names)
        if os.path.realpath(out) in map(os.path.realpath, images.files):
            raise ClcaError(f"--out {out}: is one of the images; choose another name")
    model, explanations, keep_rate = chosen["run"], None, chosen["keep_rate"]
    settings = {name: chosen[name] for name in ("keep_rate", "batch_size", "device", "precision", "compile")}
    if chosen["together"] is not None:
        return _predict_groups(chosen, images, settings, out)
    if chosen["explain"] is not None:
        from clca.evaluation.explanation_files import ExplanationFiles
        from clca.models.pretrained import from_pretrained

        explanations = ExplanationFiles(expanded(chosen["explain"]))
        model = from_pretrained(model)
    with refusing_useless_rate(chosen["run"], keep_rate):
        answers = classify(model, images, chosen["top_k"], **settings)
    bad = 0

    def explained() -> Iterator[Prediction]:
        nonlocal bad
        for answer in answers:
            if answer.error is None and explanations is not None:
                try:
                    explanations.write(model, answer.path)
                except ClcaError as unreadable:  # it was there a moment ago
                    answer = Prediction(answer.path, error=str(unreadable).removeprefix(f"{answer.path}: "))
            if answer.error is not None:
                bad += 1
                if not answer.left_out:  # of those that are, a warning is on stderr
                    print(f"clca: {shown(as_text(answer.path))}: {answer.error}", file=sys.stderr)
            yield answer

    write_predictions(explained(), chosen["format"], out)
    if explanations is not None:
        print(f"explanations written to {explanations.folder}", file=sys.stderr)
    if bad:
        print(f"clca: {bad} of the files could not be read", file=sys.stderr)
    return 1 if bad else 0


def _predict_groups(
    chosen: dict[str, Any], images: "list[str] | Photographs", settings: dict[str, Any], out: Path | None
) -> int:
    """With --together; returns the exit code."""
    from clca.errors import ClcaError
    from clca.evaluation.prediction_files import write_groups
    from clca.evaluation.together import predict_together

    if chosen["explain"] is not None:
        raise ClcaError("--explain draws single photographs: omit --together")
    with refusing_useless_rate(chosen["run"], chosen["keep_rate"]):
        groups = predict_together(chosen["run"], images, chosen["together"], chosen["top_k"], **settings)
    write_groups(groups, chosen["format"], out)
    bad = [error for group in groups for error in group.errors]
    for path, why in bad:
        print(f"clca: {shown(as_text(path))}: {why}", file=sys.stderr)
    return 1 if bad else 0


def names_from_stdin() -> list[str]:
    """The lines of standard input: names of files, which are bytes of any encoding, also as PowerShell writes them."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return sys.stdin.read().removeprefix("\ufeff").splitlines()
    content = sys.stdin.buffer.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines]
