"""`clca study plan`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling
from clca.cli.commands.study_choice import chosen_runs
from clca.cli.parsing import parse
from clca.system.paths import expanded


class Plan(Arguments):
    """Show the runs of a study and their cost, without starting anything.

    Examples:
      clca study plan paper --data-folder ~/ultra-fgvc
      clca study plan paper --data-folder ~/ultra-fgvc --only data=cotton80 --only arm=base,clca
      clca study plan my-study.yaml --gmacs-per-second 20000
    """

    study: Annotated[str, Spelling("STUDY", positional=True)] = Field(
        description="A YAML or Python file, or the name of a shipped study: paper, ablation, leaves-mini, real-leaves."
    )
    data_folder: str | None = Field(None, description="Folder that the study's relative data folders start from.")
    out: str | None = Field(
        None, description="The study's folder, where runs may be finished already. If omitted: runs/ and its name."
    )
    only: Annotated[tuple[str, ...], Spelling(repeated=True)] = Field(
        (), description="Plan only these values of an axis, as in arm=base,clca; may be given several times."
    )
    gmacs_per_second: float | None = Field(
        None,
        description="Training speed of your device, in 10⁹ multiply-accumulates per second. If omitted: as measured in "
        "the finished runs, else by a matrix product here.",
    )
    cost: bool = Field(
        True,
        description="Add up the multiply-accumulates. The first time takes longer, because models are built.",
    )


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Plan, "clca study plan", argv))
    from rich.console import Console

    from clca.study.plan.config import read_study
    from clca.study.plan.expand import plan as expand
    from clca.study.plan.overview import add_costs, overview

    planned = expand(read_study(chosen["study"]), chosen["data_folder"])
    runs = chosen_runs(planned, chosen["only"], "")
    out = expanded(chosen["out"] or Path("runs") / planned.study.name)
    console = Console()
    found = overview(planned, runs, out)
    found.render_runs(console)
    if chosen["cost"]:
        with Console(stderr=True).status("adding up multiply-accumulates"):
            add_costs(found, chosen["gmacs_per_second"])
        found.render_cost(console)
    return 0
