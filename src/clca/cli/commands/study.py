"""`clca study`: its commands."""

from collections.abc import Sequence

from clca.cli.dispatch import dispatch

COMMANDS = {
    "plan": ("study_plan", "Show the runs of a study, their cost, and what is finished"),
    "run": ("study_run", "Run what is not finished, here or on a cluster"),
    "status": ("study_status", "Show the progress of a study, and its errors"),
}


def run(argv: Sequence[str]) -> int:
    return dispatch("clca study", "Many runs as one study, from a file to a table of results.", COMMANDS, argv)
