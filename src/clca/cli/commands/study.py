"""`clca study`: its commands."""

from collections.abc import Sequence

from clca.cli.main import dispatch

COMMANDS = {
    "plan": ("study_plan", "How many runs a study has, what they cost, and what is done already"),
    "run": ("study_run", "Make the runs that are not made yet, here or on a cluster"),
    "status": ("study_status", "How far a study is, and what failed"),
}


def run(argv: Sequence[str]) -> int:
    return dispatch("clca study", "Many runs as one study, from a file to a table of results.", COMMANDS, argv)
