"""A run folder reads its config once; unique labels of runs, and two paths of one folder are one run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clca.cli.main import main
from clca.errors import ClcaError
from clca.training import TrainConfig, train
from clca.training.run_folder import RunFolder, distinct, unique_labels

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/evit"], ["evit"]),
        (["x/evit", "x/topk"], ["evit", "topk"]),
        (["x/evit", "y/evit", "y/topk"], ["x/evit", "y/evit", "topk"]),
        (["s/a/run", "s/b/run"], ["a", "b"]),
        (["s/a/run", "t/a/run"], ["s/a", "t/a"]),
        (["s/a", "s/a/run"], ["s/a", "a/run"]),
    ],
)
def test_labels_are_the_shortest_unique_names(folders: list[str], names: list[str], tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    runs = [str(tmp_path / folder) for folder in folders]
    assert unique_labels(runs) == dict(zip(runs, names, strict=True))


def test_what_is_no_folder_keeps_its_name(tmp_path: Path) -> None:
    run = tmp_path / "vit_tiny_patch16_224"
    run.mkdir()
    found = unique_labels(["vit_tiny_patch16_224", "someone/model", str(run)])
    assert list(found.values()) == ["vit_tiny_patch16_224", "someone/model", f"{tmp_path.name}/{run.name}"]


def test_two_paths_of_a_folder_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    runs = ["runs/a", "./runs/a/", "runs/b", str(tmp_path / "runs" / "a"), "runs/b"]
    assert distinct(runs) == ("runs/a", "runs/b")
    with pytest.raises(ClcaError, match="name of a run or model is empty"):
        distinct(["runs/a", " "])


def test_settings_are_read_as_utf8_in_whatever_locale(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"classes": ["Blåbær"]}', encoding="utf-8")
    program = """
import sys
import os
import subprocess
import sys
from pathlib import Path
from clca.training.run_folder import RunFolder
print(ascii(RunFolder(Path(sys.argv[1])).content))
"""
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=ascii_only
    )
    assert done.stdout == ascii({"classes": ["Blåbær"]}) + "\n", done.stderr


_opened: list[str] | None = None
_hooked: list[bool] = []


def _record_open(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(args[0], str | Path):
        _opened.append(str(args[0]))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths of all files that this process opens during the test."""
    global _opened
    if not _hooked:  # an audit hook cannot be removed
        sys.addaudithook(_record_open)
        _hooked.append(True)
    _opened = []
    yield _opened
    _opened = None


COMMANDS = {
    "evaluate": ["evaluate", "RUN", "--workers", "0", "--device", "cpu"],
    "sweep": ["evaluate", "RUN", "--sweep", "1", "0.7", "--workers", "0", "--device", "cpu"],
    "predict": ["predict", "RUN", "IMAGES", "--device", "cpu", "--out", "OUT.csv", "--format", "csv"],
    "report": ["report", "RUN", "--out", "OUT"],
    "export": ["export", "RUN", "--to", "pt2", "--out", "OUT.pt2"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_reads_the_config_of_its_run_once(
    words: list[str], make_config: Callable[..., TrainConfig], images: Path, tmp_path: Path, opened: list[str]
) -> None:
    run = train(make_config(epochs=1), quiet=True).folder
    places = {"RUN": str(run), "IMAGES": str(images / "test")}
    opened.clear()
    assert main([places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in words]) == 0
    assert [path for path in opened if path == str(run / "config.json")] == [str(run / "config.json")]


def test_the_config_is_read_once_and_only_when_it_is_needed(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"resolved": {"precision": "bf16"}}')
    opened.clear()
    run = RunFolder(tmp_path)
    assert run.exists
    assert opened == []
    assert run.precision == "bf16"
    assert run.images is None  # a saved model
    assert opened == [str(tmp_path / "config.json")]
