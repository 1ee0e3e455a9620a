"""`clca data check`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling
from clca.cli.parsing import parse


class Check(Arguments):
    """Read every image of a data set: classes, counts, sizes, and unreadable, near-empty or duplicate images.

    It also reports colour profiles that differ or cannot be read, bands that are not read, and very dark images.

    The exit code is 1 if something has to be fixed before training.

    Examples:
      clca data check photos
      clca data check ultra_fgvc/Cotton80 --source cotton80
    """

    root: Annotated[str, Spelling("DATA", positional=True)] = Field(
        description="Folder or CSV file, as for clca train."
    )
    source: str | None = Field(
        None, description="How the data is laid out (folder, csv, cotton80 …). Found out if omitted."
    )
    workers: int | None = Field(None, description="Threads that read images. If omitted: one per core, at most 16.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Check, "clca data check", argv))
    from rich.console import Console

    from clca.data.checks.report import check as run_check

    report = run_check(chosen["root"], chosen["source"], workers=chosen["workers"])
    report.render(Console())
    return 1 if report.errors else 0
