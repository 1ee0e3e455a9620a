"""`clca report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from clca.cli.parsing import parse


def run(argv: Sequence[str]) -> int:
    import tyro

    def report(
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")],
        *,
        out: str = "clca-report",
        runs: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Turn a study into one page with its figures and tables, finished or not; or one run into a page.

        The page is one file that can be sent around: light and dark, on a phone, in print. Beside it each figure is a
        PNG and a PDF and each table a CSV and a LaTeX file.

        Examples:
          clca report runs/leaves-mini --out report
          clca report runs/leaves-mini --out report --runs
          clca report runs/first --out report-of-first

        Args:
            folder: Folder of a study (clca study run) or of one run (clca train).
            out: Folder for index.html, figures/ and tables/; files of an earlier report there are replaced.
            runs: A page for every run of the study too, linked from the first; half a second each.
        """
        return dict(locals())

    chosen = parse(report, "clca report", argv)
    from clca.report.page import need_extras
    from clca.system.paths import shown

    need_extras()
    from clca.report.study.report import report as write_report

    made = write_report(Path(chosen["folder"]), Path(chosen["out"]), runs=chosen["runs"])
    pages = f", {made.pages} pages of runs" if chosen["runs"] else ""
    print(f"{made.page}: the page; {made.figures} figures, {made.tables} tables{pages} beside it")
    print(shown(" ".join(made.answer)))
    return 0
