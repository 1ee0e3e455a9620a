"""Names of runs: what tells them apart, and that two paths of one folder are one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clca.errors import ClcaError
from clca.training.run_folder import distinct, unique_labels


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
def test_the_shortest_names_that_tell_runs_apart(folders: list[str], names: list[str], tmp_path: Path) -> None:
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
