"""Runs the commands and the Python of a page in a scratch folder, in order, as its reader would."""

import argparse
import contextlib
import dataclasses
import importlib
import io
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import timm
import torch
import yaml
from filelock import FileLock
from manual_blocks import ROOT, SHELL, Block, Command, blocks, commands, hidden_commands
from manual_scratch import MODEL, SIZE, TINY, write_study
from manual_stand_ins import ENDS_WITH_1, NOT_RUN, NOT_RUN_PYTHON, ONLY_UNDERSTOOD, small

import clca
from clca.cli import main as cli
from clca.demo.recipe import DemoSettings
from clca.reductions import plugins as imported
from clca.reductions import registry

PAGE = "__page__"
"""Name of the module that the Python of a page is."""

ADDRESS = re.compile(r"(127\.0\.0\.1|localhost|HOST):8000")
SNIPPETS = re.compile(r'(--8<-- "[^"]+"\s*)+')
"""Parts of a file: the build takes them in, and fails where they are not there; commands of the page run the file."""

SMALL_DEMO = DemoSettings(cultivars=3, images=10, img_size=64, timed_images=4, timed_rounds=1, pictured=2)


class Understood(Exception):
    """A command has come to where its work would begin."""


class PageRunner:
    """One page: its scratch folder is the working folder, its server and its Python names last until its end.

    Args:
        demo: Where the demo is kept once it has been made; the pages that show it share it.
        monkeypatch: Undone by the test at its end.
    """

    def __init__(self, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.demo, self.patch = demo, monkeypatch
        self.names: dict[str, Any] = python_names()
        self.stop_server: Any = None
        self.port = 0
        self._put_in_place()

    def _put_in_place(self) -> None:
        """What has no flag: where studies run, how large the demo is, what a server does with its thread."""
        from clca.cli.commands import study_run

        executor = study_run._executor
        here = importlib.import_module("clca.study.run.executors").InThisProcess
        self.patch.setattr(study_run, "_executor", lambda chosen: (executor(chosen) and here(), 1))
        self.patch.setattr("clca.demo.run.run", self._small_demo)
        self.patch.setattr("clca.benchmark.benchmark", _understood)
        self._serve_in_a_thread()
        for module, name in ((clca, "create_model"), (timm, "create_model")):
            self.patch.setattr(module, name, _small_model(getattr(module, name)))

    def run(self, page: str) -> None:
        """Every block of a page, in order.

        Raises:
            AssertionError: Something shown does not work; the message names its line.
        """
        for block in blocks(page):
            assert not hidden_commands(block), f"line {block.line}: a command in a block that is not ```sh"
            if block.language in SHELL:
                for command in commands(block):
                    self.run_command(command)
            elif block.language in ("python", "py"):
                self.run_python(block)
            elif block.language == "yaml":
                _keep_study(block)

    def run_python(self, block: Block) -> None:
        if block.text.splitlines()[0] in NOT_RUN_PYTHON or SNIPPETS.fullmatch(block.text.strip()):
            return
        code = ADDRESS.sub(f"127.0.0.1:{self.port}", block.text)
        try:
            exec(compile("\n" * (block.line - 1) + code, "page", "exec"), self.names)
        except Exception as error:
            raise AssertionError(f"line {block.line}: {type(error).__name__}: {error}\n{block.text}") from error

    def run_command(self, command: Command) -> None:
        if any(command.shown.removeprefix("uv run ").startswith(beginning) for beginning in NOT_RUN):
            return
        program, *words = command.words
        with _environment(command.environment):
            words = [self._filled(word) for word in words]
            if program == "openssl":
                assert words[:2] == ["rand", "-hex"], command.shown
                Path(command.target).write_text(secrets.token_hex(int(words[2])) + "\n")
            elif program == "curl":
                self._curl(words, command)
            else:
                start = 0 if program == "clca" else words.index("clca") + 1
                self._clca(words[start:], command)

    def _filled(self, word: str) -> str:
        """A word with $NAME, $(cat FILE) and the server's address as they are here."""
        word = re.sub(r"\$\(cat (\S+)\)", lambda found: Path(found[1]).read_text().strip(), word)
        return os.path.expandvars(ADDRESS.sub(f"127.0.0.1:{self.port}", word))

    def _clca(self, words: list[str], command: Command) -> None:
        place = next((i for i, word in enumerate(words) if word in cli.COMMANDS), None)
        assert place is not None, f"line {command.line}: there is no such command: {command.shown}"
        name = words[place]
        words = [*words[: place + 1], *small(name, words[place + 1 :])]
        for made in _made_anew(words):
            shutil.rmtree(made, ignore_errors=True)
        if command.source:
            piped = subprocess.run(command.source, capture_output=True, text=True, check=True).stdout
            self.patch.setattr("sys.stdin", io.StringIO(piped))
        told, output = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(output):
            try:
                code = cli.main([*words, "--debug"])
            except Understood:
                assert name in ONLY_UNDERSTOOD
                code = 0
            except (Exception, SystemExit) as error:
                raise AssertionError(
                    f"line {command.line}: {command.shown}\n{type(error).__name__}: {error}"
                ) from error
        expected = 1 if command.shown in ENDS_WITH_1 else 0
        assert code == expected, f"line {command.line}: {command.shown} ended with {code}\n{told.getvalue()}"
        if command.target:
            Path(command.target).write_text(output.getvalue())

    def _small_demo(self, out: str | Path, **more: Any) -> Any:
        with FileLock(f"{self.demo}.lock"):  # pages in other processes show it too
            result = _DEMO(self.demo, settings=SMALL_DEMO)
        shutil.copytree(self.demo, out, dirs_exist_ok=True)
        return dataclasses.replace(result, folder=Path(out))

    def _serve_in_a_thread(self) -> None:
        from clca.serve import server

        listen = server.listen

        def serve(app: Any, listening: Any, ready: Any) -> None:
            self.close()
            up = threading.Event()
            running = server.make_server(app, up.set)
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            assert up.wait(60), "the server did not come up"
            ready()
            self.port = listening.getsockname()[1]
            assert httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=60).status_code == 200
            self.stop_server = lambda: (running.handle_exit(15, None), thread.join(30), listening.close())

        self.patch.setattr(server, "listen", lambda host, port: listen("127.0.0.1", 0))
        self.patch.setattr(server, "serve", serve)

    def _curl(self, words: Sequence[str], command: Command) -> None:
        """The same request as curl would send; flags that no page shows are refused."""
        parser = argparse.ArgumentParser("curl")
        for flag in ("-F", "-H"):
            parser.add_argument(flag, action="append", default=[])
        parser.add_argument("--data-binary", default="")
        parser.add_argument("url")
        asked = parser.parse_args(words)
        headers = dict(re.split(r": *", header, maxsplit=1) for header in asked.H)
        files = [(name, Path(path).read_bytes()) for name, path in (field.split("=@") for field in asked.F)]
        forms = [(name, (f"{number}.jpg", data)) for number, (name, data) in enumerate(files)]
        content = Path(asked.data_binary.removeprefix("@")).read_bytes() if asked.data_binary else None
        how = "POST" if forms or content else "GET"
        answer = httpx.request(how, asked.url, headers=headers, files=forms or None, content=content, timeout=60)
        assert answer.status_code == 200, f"line {command.line}: {command.shown}\n{answer.status_code}: {answer.text}"

    def close(self) -> None:
        """End the server, if there is one."""
        if self.stop_server is not None:
            self.stop_server()
            self.stop_server = None


_DEMO = importlib.import_module("clca.demo.run").run


def _made_anew(words: list[str]) -> list[str]:
    """Folders of the scratch that a reader does not have before this command makes them."""
    if "train" in words and "--out" in words:
        return [words[words.index("--out") + 1]]
    return [words[2]] if words[:2] == ["data", "leaves"] else []


def _understood(*args: Any, **more: Any) -> None:
    raise Understood


def _small_model(create: Callable[..., Any]) -> Callable[..., Any]:
    """`create_model` that makes tiny models, without downloads, for a page; the library gets what it asks for."""

    def created(name: str, *args: Any, **settings: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") != PAGE:
            return create(name, *args, **settings)
        settings |= {"img_size": SIZE, "pretrained": False, **TINY}
        settings |= {"backbone": MODEL} if "backbone" in settings else {}
        return create("clca_vit" if name == "clca_vit" else MODEL, *args, **settings)

    return created


def python_names() -> dict[str, Any]:
    """Names that the pages' Python takes as given."""
    return {
        "__name__": PAGE,
        "timm": timm,
        "images": torch.rand(2, 3, SIZE, SIZE),
        "my_timm_vit": timm.create_model(MODEL, img_size=SIZE, num_classes=3, **TINY),
    }


def _keep_study(block: Block) -> None:
    """A study that a page writes out becomes a file, with tiny models in the place of its own."""
    content = yaml.safe_load(block.text)
    if isinstance(content, dict) and "axes" in content:
        write_study(content)


@contextlib.contextmanager
def _environment(assignments: Sequence[str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_ARRAY_TASK_ID", "1")
        for assignment in assignments:
            patch.setenv(*assignment.split("=", 1))
        yield


@contextlib.contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Takes back what commands in a folder leave in this process: reductions of one's own, variables, its modules."""
    variables, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    reductions, loaded = dict(registry._REDUCTIONS), set(imported._loaded)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        registry._REDUCTIONS.clear()
        registry._REDUCTIONS.update(reductions)
        imported._loaded.clear()
        imported._loaded.update(loaded)
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


def copy_examples(folder: Path) -> None:
    """The examples of docs/, where a page names them, and beside the photographs."""
    examples = ROOT / "docs" / "examples"
    if examples.is_dir():
        shutil.copytree(examples, folder / "docs" / "examples")
        shutil.copytree(examples, folder, dirs_exist_ok=True)
