"""`clca study status`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling, Switch
from clca.cli.parsing import parse
from clca.system.paths import expanded


class Status(Arguments):
    """Show the progress of a study: finished, running, interrupted and failed runs, by axis, and the errors.

    Examples:
      clca study status runs/leaves-mini
      clca study status runs/leaves-mini --failed
    """

    folder: Annotated[str, Spelling("FOLDER", positional=True)] = Field(description="The study's folder.")
    failed: Switch = Field(False, description="List every failed run with the file that holds its traceback.")
    table: Switch = Field(False, description="Write results.parquet again from the runs' folders.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Status, "clca study status", argv))
    from rich.console import Console

    from clca.study.run.status import study_status

    out = expanded(chosen["folder"])
    found = study_status(out)
    found.render(Console(), every_failure=chosen["failed"])
    if chosen["table"]:
        from clca.study.results.table import read_table, write_table

        path = write_table(out, read_table(out).to_dict("records"))
        print(f"written: {path}")
    return 0
