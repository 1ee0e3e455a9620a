"""`clca study plan`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from clca.cli.commands.study_choice import chosen_runs
from clca.cli.parsing import parse
from clca.system.paths import expanded


def run(argv: Sequence[str]) -> int:
    import tyro

    def plan(
        study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")],
        /,
        *,
        data_folder: str | None = None,
        out: str | None = None,
        only: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="AXIS=VALUES")] = (),
        gmacs_per_second: float | None = None,
        cost: bool = True,
    ) -> dict[str, Any]:
        """Say what a study comes to, without starting anything.

        Examples:
          clca study plan paper --data-folder ~/ultra-fgvc
          clca study plan paper --data-folder ~/ultra-fgvc --only data=cotton80 --only arm=base,clca
          clca study plan my-study.yaml --gmacs-per-second 20000

        Args:
            study: A YAML or Python file, or the name of a shipped study: paper, ablation, leaves-mini.
            data_folder: Folder that relative data folders of the study are below.
            out: The study's folder, where runs may be done already. If omitted: runs/ and its name.
            only: Plan these values of an axis only, as in arm=base,clca; may be given several times.
            gmacs_per_second: Rate of training on your device, in 10⁹ multiply-accumulates a second. If omitted: as
                measured in the runs that are done, else a matrix product measured here.
            cost: Whether to add up the multiply-accumulates. A model whose cost must be measured takes longer, once.
        """
        return dict(locals())

    chosen = parse(plan, "clca study plan", argv)
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
