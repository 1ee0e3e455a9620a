"""Which of a study's runs a command is about: --only and --shard."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clca.errors import ClcaError
from clca.system.numbers import is_whole_number

if TYPE_CHECKING:
    from clca.study.plan.expand import Plan, PlannedRun


def chosen_runs(plan: "Plan", only: Sequence[str], shard: str) -> "list[PlannedRun]":
    """The runs that `--only AXIS=VALUE,…` and `--shard i/n` leave.

    Raises:
        ClcaError: They name what there is not, or leave nothing.
    """
    wanted: dict[str, list[str]] = {}
    for text in only:
        axis, sign, labels = text.partition("=")
        if not sign or not labels:
            raise ClcaError(f"--only {text}: write an axis and its values, such as arm=base,clca")
        whole = {value.label for value in plan.study.axes.get(axis, ())}  # leaves:cultivars=3,images=5 has a comma
        wanted.setdefault(axis, []).extend([labels] if labels in whole else map(str.strip, labels.split(",")))
    runs = plan.only(wanted)
    if shard:
        number, count = _shard(shard)
        runs = runs[number - 1 :: count]
    if not runs:
        raise ClcaError(f"{plan.study.name}: --only and --shard leave no run")
    return runs


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (is_whole_number(number) and is_whole_number(count) and 1 <= int(number) <= int(count)):
        raise ClcaError(f"--shard {text}: write which of how many parts, such as 1/4")
    return int(number), int(count)
