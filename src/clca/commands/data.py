"""`clca data`: its two commands."""

from collections.abc import Sequence

from clca.cli import dispatch

COMMANDS = {
    "check": ("data_check", "What is in a data set, and what is wrong with it"),
    "leaves": ("data_leaves", "Draw synthetic leaves into a folder"),
}


def run(argv: Sequence[str]) -> int:
    return dispatch("clca data", "Look at a data set, or draw a synthetic one.", COMMANDS, argv)
