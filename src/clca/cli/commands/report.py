"""`clca report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling, Switch
from clca.cli.parsing import parse


class Report(Arguments):
    """Turn a study, finished or not, into one page with its figures and tables; or one run into a page.

    The page is one file that can be sent by mail, for light and dark screens, phones and print. Beside it each figure
    is a PNG and a PDF and each table a CSV and a LaTeX file.

    Examples:
      clca report runs/leaves-mini --out report
      clca report runs/leaves-mini --out report --runs
      clca report runs/first --out report-of-first
    """

    folder: Annotated[str, Spelling("STUDY", positional=True)] = Field(
        description="Folder of a study (clca study run), of one run (clca train) or of a cross-validation (--folds)."
    )
    out: str = Field(
        "clca-report",
        description="Folder for index.html, figures/ and tables/; files of an earlier report there are replaced.",
    )
    runs: Switch = Field(
        False, description="Write a page for every run of the study too, linked from the first; half a second each."
    )


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Report, "clca report", argv))
    from clca.report.page import need_extras
    from clca.system.paths import shown

    need_extras()
    from clca.report.study.report import report as write_report

    made = write_report(Path(chosen["folder"]), Path(chosen["out"]), runs=chosen["runs"])
    pages = f", {made.pages} pages of runs" if chosen["runs"] else ""
    print(f"{made.page}: the page; {made.figures} figures, {made.tables} tables{pages} beside it")
    print(shown(" ".join(made.answer)))
    return 0
