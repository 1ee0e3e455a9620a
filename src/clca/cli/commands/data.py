"""`clca data`: its commands."""

from collections.abc import Sequence

from clca.cli.main import dispatch

COMMANDS = {
    "check": ("data_check", "What is in a data set, and what is wrong with it"),
    "leaves": ("data_leaves", "Draw synthetic leaves into a folder"),
    "cache": ("data_cache", "What resized images are kept on disk, and how to be rid of them"),
}


def run(argv: Sequence[str]) -> int:
    return dispatch("clca data", "Look at a data set, draw a synthetic one, clear what is kept.", COMMANDS, argv)
