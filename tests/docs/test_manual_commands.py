"""Every command and every Python block of the manual and the README is run, in order, page by page."""

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manual_blocks import ROOT, SHELL, Command, blocks, commands, pages
from manual_running import PageRunner, Understood, copy_examples, left_as_it_was
from manual_scratch import copy_of
from manual_stand_ins import NOT_RUN, NOT_RUN_PYTHON

from clca.cli import main as cli

pytestmark = pytest.mark.slow

PAGES = [page for page in pages() if any(block.language in (*SHELL, "python") for block in blocks(page.read_text()))]


def shown_commands() -> list[Command]:
    found = [block for page in PAGES for block in blocks(page.read_text()) if block.language in SHELL]
    return [command for block in found for command in commands(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_does_what_it_shows(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path_factory.getbasetemp()
    shared = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    copy_of(shared / "manual-scratch", tmp_path)
    copy_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    with left_as_it_was(tmp_path):
        runner = PageRunner(shared / "manual-demo", monkeypatch)
        try:
            runner.run(page.read_text())
        finally:
            runner.close()
            monkeypatch.undo()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("Text.\n\n    clca exlain photos", "line 3: there is no such command"),
        ("```sh\nclca data check . --wrokers 2\n```", "line 2: clca data check . --wrokers 2\nClcaError"),
        ("```sh\nclca data check nowhere\n```", "nowhere: no such file"),
        ("```text\nclca train photos\n```", "a command in a block that is not"),
        ("```python\nimport clca\n\nclca.no_such_name\n```", "line 2: AttributeError"),
        ("```sh\ncurl http://127.0.0.1:8000/health --insecure\n```", "SystemExit"),
    ],
)
def test_what_does_not_work_is_told(
    page: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = PageRunner(tmp_path / "demo", monkeypatch)
    with pytest.raises((AssertionError, SystemExit)) as refused:
        runner.run(page)
    assert told in f"{refused.type.__name__} {refused.value}"


def test_what_is_not_run_is_still_shown() -> None:
    lines = [command.shown.removeprefix("uv run ") for command in shown_commands()]
    python = [block.text.splitlines()[0] for page in PAGES for block in blocks(page.read_text()) if block.text]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [first for first in NOT_RUN_PYTHON if first not in python] == []


def test_benchmark_scripts_have_the_flags_that_are_shown() -> None:
    scripts = [command.words for command in shown_commands() if command.words[0] == "python"]
    scripts = [words for words in scripts if words[1].startswith("benchmarks/")]
    assert scripts
    for _, script, *words in scripts:
        text = (ROOT / script).read_text()
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            field = flag.strip("-").replace("-", "_")
            assert re.search(rf'"{flag}"|^\s+{field}: ', text, re.MULTILINE), f"{script} has no {flag}"


FOREIGN_FLAGS = {
    *("--data-binary", "--head", "--job-name", "--array", "--gres", "--cpus-per-task", "--time", "--signal"),
    *("--num-processes", "--notest"),
}
"""Flags of curl, Ray, Slurm, accelerate and convmv that pages show; timm's have a page of their own."""


def test_flags_in_the_manual_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, *_) in cli.COMMANDS.items():
        parts = getattr(importlib.import_module(f"clca.cli.commands.{module}"), "COMMANDS", {})
        for words in [[name, part] for part in parts] or [[name]]:
            with pytest.raises(SystemExit):
                cli.main([*words, "--help"])
    cli.main(["--help"])
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    flag = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
    known = {*flag.findall(capsys.readouterr().out), *flag.findall(scripts), *FOREIGN_FLAGS, "--help"}
    known |= {f"--{field.replace('_', '-')}" for field in re.findall(r"^\s+(\w+): ", scripts, re.MULTILINE)}
    shown = {page: set(flag.findall(page.read_text())) for page in pages() if page.name != "timm-scripts.md"}
    assert {page.name: flags - known for page, flags in shown.items() if flags - known} == {}


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_the_examples_in_the_help_are_understood(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in the manual's page on the command line; run they are where a page shows them."""
    from clca.cli import parsing

    module = importlib.import_module(f"clca.cli.commands.{cli.COMMANDS[name][0]}")
    members = {part: module.COMMANDS[part][0] for part in getattr(module, "COMMANDS", {})}
    for module_name in members.values() or [cli.COMMANDS[name][0]]:
        command = importlib.import_module(f"clca.cli.commands.{module_name}")
        name_of_parser = "read" if module_name == "train" else "parse"
        monkeypatch.setattr(command, name_of_parser, _stop_after(getattr(parsing, name_of_parser)))
    for words in [[name, part] for part in members] or [[name]]:
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        examples = capsys.readouterr().out.partition("Examples:\n")[2].split("\n\n")[0].splitlines()
        for line in examples:
            for example in commands(next(blocks(f"```sh\n{line.strip()}\n```"))):
                if example.words[0] in ("clca", "torchrun"):
                    start = example.words.index("clca") + 1
                    with pytest.raises(Understood):
                        cli.main([*example.words[start:], "--debug"])


def _stop_after(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parsed(*args: Any, **more: Any) -> Any:
        parse(*args, **more)
        raise Understood

    return parsed
