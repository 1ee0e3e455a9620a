"""What is put in the place of what a page names, so that its commands end in seconds; and what is not run at all."""

import re
from collections.abc import Callable
from pathlib import Path

from manual_scratch import MODEL, SIZE, TINY_SETTINGS

NOT_RUN = {
    "python benchmarks/": "measures for minutes to hours; the test asks only that the script has these flags",
    'python -c "import clca.timm, runpy': "timm's scripts are not in its package; tests/test_timm.py runs them",
}
"""Beginnings of commands that are shown and not run, each with the reason."""

NOT_RUN_PYTHON: dict[str, str] = {}
"""First lines of Python blocks that are shown and not run, each with the reason."""

ONLY_UNDERSTOOD = {
    "benchmark": "measures for minutes; its settings are made and checked, and then it stops",
}
"""Commands that are run up to the point where their work would begin."""

ENDS_WITH_1: tuple[str, ...] = ()
"""Commands whose answer is an exit code of 1, such as a check that finds what has to be mended."""

Words = list[str]


def small(command: str, words: Words) -> Words:
    """The arguments of `clca COMMAND` for tiny models and few images; no flag is taken away or renamed."""
    return SMALLER[command](list(words)) if command in SMALLER else list(words)


def give(words: Words, flag: str, *values: str) -> Words:
    """`words` with these values for a flag, whether it is there or not."""
    if flag not in words:
        return [*words, flag, *values]
    start = words.index(flag) + 1
    end = start
    while end < len(words) and not words[end].startswith("--"):
        end += 1
    return [*words[:start], *values, *words[end:]]


def _train(words: Words) -> Words:
    if "--resume" in words:
        return words
    words = [re.sub(r"^leaves:.*", "leaves:cultivars=2,images=10,size=40,difficulty=0", word) for word in words]
    if "--weights" not in words and "--no-pretrained" not in words:
        words = [*words, "--no-pretrained"]
    for flag, value in (
        ("--model", MODEL), ("--config", TINY_SETTINGS), ("--img-size", str(SIZE)), ("--epochs", "1"),
        ("--batch-size", "16"), ("--device", "cpu"), ("--workers", "0"), ("--precision", "no"),
    ):  # fmt: skip
        words = give(words, flag, value)
    return words


def _tune(words: Words) -> Words:
    for flag, value in (("--device", "cpu"), ("--workers", "0"), ("--threads", "1")):
        words = give(words, flag, value)
    return give(words, "--keep-rates", "0.5", "0.25")


def _data(words: Words) -> Words:
    if words[:1] != ["leaves"]:
        return words
    return give(give(give(words, "--cultivars", "3"), "--images", "6"), "--size", str(SIZE))


def _evaluate(words: Words) -> Words:
    return give(give(words, "--device", "cpu"), "--workers", "0")


def _predict(words: Words) -> Words:
    if "--explain" in words:  # a figure a photograph: two are enough
        words = ["new" if word == "photos/" else word for word in words]
    return give(words, "--device", "cpu")


def _study(words: Words) -> Words:
    """The shipped studies are planned whole; to be run, two tiny runs of the same name stand in for them."""
    if words[:1] == ["run"] and not Path(words[1]).exists():
        from manual_scratch import STUDY, write_study

        words = ["run", str(write_study({**STUDY, "name": words[1]})), *words[2:]]
    return words


def _serve(words: Words) -> Words:
    return give(words, "--device", "cpu")


def _app(words: Words) -> Words:
    return [*_serve(words), "--no-browser"]


SMALLER: dict[str, Callable[[Words], Words]] = {
    "train": _train, "tune": _tune, "data": _data, "evaluate": _evaluate, "predict": _predict, "study": _study,
    "serve": _serve, "app": _app,
}  # fmt: skip
