"""`clca study status`."""

from collections.abc import Sequence
from typing import Annotated, Any

from clca.cli.parsing import parse
from clca.system.paths import expanded


def run(argv: Sequence[str]) -> int:
    import tyro

    def status(
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
        /,
        *,
        failed: tyro.conf.FlagCreatePairsOff[bool] = False,
        table: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Say how far a study is: finished, running, interrupted and failed runs, by axis, and what went wrong.

        Examples:
          clca study status runs/leaves-mini
          clca study status runs/leaves-mini --failed

        Args:
            folder: The study's folder.
            failed: List every failed run with the file that holds its traceback.
            table: Write results.parquet anew from the runs' folders.
        """
        return dict(locals())

    chosen = parse(status, "clca study status", argv)
    from rich.console import Console

    from clca.study.results.status import study_status

    out = expanded(chosen["folder"])
    found = study_status(out)
    found.render(Console(), every_failure=chosen["failed"])
    if chosen["table"]:
        from clca.study.results.table import read_table, write_table

        path = write_table(out, read_table(out).to_dict("records"))
        print(f"written: {path}")
    return 0
