"""`clca data`: its commands."""

from collections.abc import Sequence

from clca.cli.dispatch import dispatch

COMMANDS = {
    "check": ("data_check", "Count and check the images of a data set"),
    "leaves": ("data_leaves", "Draw a synthetic data set of leaves"),
    "cache": ("data_cache", "List or remove the resized images on disk"),
}


def run(argv: Sequence[str]) -> int:
    return dispatch("clca data", "Check a data set, draw a synthetic one, or list cached images.", COMMANDS, argv)
