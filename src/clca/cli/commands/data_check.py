"""`clca data check`."""

from collections.abc import Sequence
from typing import Annotated, Any

from clca.cli.parsing import parse


def run(argv: Sequence[str]) -> int:
    import tyro

    def check(
        root: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
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
            source: How the data is laid out (folder, csv, cotton80 …). Found out if omitted.
            workers: Threads that read. If omitted: one a core, at most 16.
        """
        return dict(locals())

    chosen = parse(check, "clca data check", argv)
    from rich.console import Console

    from clca.data.checks.report import check as run_check

    report = run_check(chosen["root"], chosen["source"], workers=chosen["workers"])
    report.render(Console())
    return 1 if report.errors else 0
