"""YAML files of settings: what versions of YAML read differently is refused, with its line."""

import re
from pathlib import Path

import pytest

from clca.cli.main import main
from clca.errors import ClcaError
from clca.system.yaml import read_yaml
from clca.training.settings import read_file


def read(folder: Path, text: str) -> object:
    (folder / "settings.yaml").write_text(text, "utf-8")
    return read_yaml(folder / "settings.yaml", "settings")


@pytest.mark.parametrize(
    "number",
    ["010", "08", "-010", "+07", "00", "00.5", "0x1F", "0o17", "0b11", "1_000", "1:30", "190:20:30", ".inf", "-.INF",
     ".nan"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["lr: 1\nseed: {}", "lr: 1\nseeds: [1, {}]", "lr: 1\n{}: 3", "lr: 1\n- {}"])
def test_a_number_of_several_meanings_is_refused(tmp_path: Path, number: str, text: str) -> None:
    with pytest.raises(ClcaError, match=r"^settings: (cannot be read \()?line 2"):
        read(tmp_path, text.format(number))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nseed: 2", 2),
        ("seed: 1\nlr: 2\n'seed': 3", 3),
        ("model:\n  depth: 1\n  depth: 1", 3),
        ('{"seed": 1,\n "seed": 1}', 2),
        ("? seed\n: 1\n? seed\n: 2", 3),
        ("1: a\n1.0: b", 2),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", 4),
    ],
)
def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ClcaError, match=rf"^settings: cannot be read \(line {line}: .* occurs twice\)$"):
        read(tmp_path, text)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "Off", "2024-01-01", "1,000", "="])
def test_a_word_is_a_word(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, f"a: {word}\n{word}: 1") == {"a": word, word: 1}


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("0", 0), ("-0.5", -0.5), ("10", 10), ("'010'", "010")])
def test_plain_numbers_and_quoted_text_are_read(tmp_path: Path, text: str, value: object) -> None:
    assert read(tmp_path, f"a: {text}") == {"a": value}


@pytest.mark.parametrize(
    ("text", "both"),
    [
        ("keep_rate: 0.5\nkeep-rate: 0.25", "keep_rate and keep-rate"),
        ("backbone: a\nmodel: b", "backbone and model"),
        ("img_size: 224\nmodel: {img_size: 448}", "img_size and model: img_size"),
        ("data:\n  root: a\nroot: b", "data: root and root"),
    ],
)
def test_a_setting_under_two_spellings_is_refused(tmp_path: Path, text: str, both: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ClcaError, match=f": {both} are the same setting; give it once$"):
        read_file(str(tmp_path / "settings.yaml"))


@pytest.mark.parametrize("text", ["seed: 010", "seed: 1\nseed: 2", "seed: 1:30"])
@pytest.mark.parametrize("command", ["train", "study"])
def test_the_command_line_names_file_and_line(
    tmp_path: Path, text: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    argv = {"train": ["train", "leaves", "--config", str(file)], "study": ["study", "plan", str(file)]}
    assert main(argv[command]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(rf"clca: (--config )?{re.escape(str(file))}: .*line {text.count(chr(10)) + 1}: .*\n", told)
