"""How the tests of the manual read a page: which lines they take for commands, and which they do not overlook."""

import pytest
from manual_blocks import blocks, commands, hidden_commands

PAGE = """
Text with `clca train` in it.

```sh
clca train photos --model a \\
    --keep-rate 0.1            # a comment, isn't it
pip install uv && uv run clca demo demo; ls
```

=== "A tab"

    It isn't a command.

    ```sh
    clca data leaves leaves
    ```

    ```{ .python title="x.py" }
    a = 1
    ```

Between.

    uv run clca predict runs/vines new/*.jpg --explain why/   # what it looked at
    python benchmarks/layers.py

```text
clca: an answer
```
"""


def test_commands_are_found_wherever_they_stand() -> None:
    found = [block for block in blocks(PAGE) if block.language in ("", "sh")]
    words = [command.words for block in found for command in commands(block)]
    assert words == [
        ("clca", "train", "photos", "--model", "a", "--keep-rate", "0.1"),
        ("clca", "demo", "demo"),
        ("clca", "data", "leaves", "leaves"),
        ("clca", "predict", "runs/vines", "new/*.jpg", "--explain", "why/"),
        ("python", "benchmarks/layers.py"),
    ]


def test_python_is_found_in_a_tab_and_lines_are_numbered() -> None:
    python = [block for block in blocks(PAGE) if block.language == "python"]
    assert [block.text for block in python] == ["a = 1"]
    assert PAGE.splitlines()[python[0].line - 1].strip() == "a = 1"


@pytest.mark.parametrize(
    ("line", "source", "target", "environment"),
    [
        ("find new -name '*.jpg' | clca predict runs/a -", ("find", "new", "-name", "*.jpg"), "", ()),
        ("openssl rand -hex 32 > token", (), "token", ()),
        ("CLCA_IMPORT=tps.py clca evaluate runs/a", (), "", ("CLCA_IMPORT=tps.py",)),
        ("exec clca study run a.yaml --shard $SLURM_ARRAY_TASK_ID/20", (), "", ()),
    ],
)
def test_pipes_files_and_variables(line: str, source: tuple, target: str, environment: tuple) -> None:
    (command,) = commands(next(blocks(f"```sh\n{line}\n```")))
    assert (command.source, command.target, command.environment) == (source, target, environment)


@pytest.mark.parametrize("line", ["pip install clca", "# clca train", "see clca train", "ray start --head", "clcax a"])
def test_what_is_not_ours_is_left_alone(line: str) -> None:
    assert list(commands(next(blocks(f"```sh\n{line}\n```")))) == []


def test_a_command_in_a_block_of_output_is_told() -> None:
    assert hidden_commands(next(blocks("```text\nuv run clca train photos\n```"))) == ["uv run clca train photos"]
    assert hidden_commands(next(blocks("```text\nclca: no command\n```"))) == []
