"""Result files from anybody: folders are read without a crash, and what is wrong in them is left out."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from bounded import bounded, run_clca
from pyarrow import parquet

from clca.study.results.folder import FORMAT, read_failure
from clca.study.results.rows import COLUMNS, checked_row
from clca.study.results.stored_table import stored_rows
from clca.study.results.table import row_of

LIMITS: dict[str, Any] = {"memory_mib": 1024, "cpu_seconds": 60}
ESCAPE, SCRIPT = "\x1b[2J", "<script>alert(1)</script>"
ROW = {"state": "finished", "keep_rates": None, "top1": 0.5, "axis.arm": "base", "arm": "base", "gmacs": 1.0, "seed": 0}
WRONG: list[Any] = ["x", -1, 10**19, 1e308, True, None, [], {}, [[1]], {"a": 1}, SCRIPT, ESCAPE]
RESULTS = {
    "nested without end": "[" * 100_000,
    "a number of 10,000 digits": '{"state": "finished", "top1": ' + "9" * 10_000 + "}",
    "a number of 4,000 digits": '{"state": "finished", "top1": ' + "9" * 4000 + "}",
    "no number": '{"state": "finished", "top1": NaN}',
    "infinity": '{"state": "finished", "top1": Infinity}',
    "a large file": '{"state": "finished", "error": "' + "x" * (5 << 20) + '"}',
    "another name": json.dumps({**ROW, "name": "../../../elsewhere"}),
    **{f"{value!r:.20} everywhere": json.dumps({**dict.fromkeys(ROW, value), "state": "finished"}) for value in WRONG},
}


def _study(folder: Path, result: str, **changes: Any) -> Path:
    run = folder / "runs" / "a-0123456789ab"
    run.mkdir(parents=True)
    (run / "result.json").write_text(result)
    (run / "run.json").write_text("{}")
    study = {"format": FORMAT, "name": "theirs", "axes": {"arm": ["base", "clca"]}, "seeds": [0], "total": 2}
    (folder / "study.json").write_text(json.dumps({**study, **changes}))
    return folder


def _table(path: Path, rows: int = 1, codec: str = "snappy", **columns: Any) -> Path:
    whole = {name: pyarrow.nulls(rows, pyarrow.string()) for name in COLUMNS}
    parquet.write_table(pyarrow.table({**whole, **columns}), path, compression=codec)
    return path


@pytest.mark.parametrize("name", RESULTS)
def test_a_row_has_only_what_the_table_has(name: str, tmp_path: Path) -> None:
    row = row_of(_study(tmp_path, RESULTS[name]), "a-0123456789ab")
    assert row["name"] == "a-0123456789ab"
    assert all(value is None or isinstance(value, (str, int, float)) for value in row.values())
    assert all(abs(row.get(key) or 0) <= 1e30 for key in ("top1", "gmacs", "seed"))


@pytest.mark.parametrize("name", ["a number of 4,000 digits", "another name", f"{ESCAPE!r:.20} everywhere"])
def test_status_answers_without_escape_sequences(name: str, tmp_path: Path) -> None:
    folder = _study(tmp_path, RESULTS[name], name=ESCAPE, axes={"arm": [ESCAPE, "[/red]"]})
    outcome = bounded(run_clca, "study", "status", str(folder), **LIMITS)
    code, out, err = outcome.value
    assert code == 0, err
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    "changes",
    [{"total": "many"}, {"axes": []}, {"axes": {"arm": "base"}}, {"seeds": {}}, {"planned": {"arm": 3}}, {"name": 5},
     {"total": 10**30}, {"axes": {"arm": [1]}}],
)  # fmt: skip
def test_a_study_of_other_types_is_refused_in_a_line(changes: dict[str, Any], tmp_path: Path) -> None:
    outcome = bounded(run_clca, "study", "status", str(_study(tmp_path, "{}", **changes)), **LIMITS)
    code, _, err = outcome.value
    assert code == 2
    assert "study.json" in err
    assert len(err.strip().splitlines()) == 1


def test_no_name_becomes_markup_in_a_report(tmp_path: Path) -> None:
    result = json.dumps({**ROW, "axis.arm": SCRIPT, "backbone": SCRIPT, "host": SCRIPT, "data": SCRIPT})
    folder = _study(tmp_path / "study", result, about=SCRIPT, axes={"arm": [SCRIPT]})
    outcome = bounded(run_clca, "report", str(folder), "--out", str(tmp_path / "out"), **LIMITS)
    code, _, err = outcome.value
    assert code == 0, err
    assert "<script>alert" not in (tmp_path / "out" / "index.html").read_text()


def test_a_table_is_read_only_as_we_write_it(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    assert len(stored_rows(_table(path, 3), most=3)) == 3
    assert stored_rows(_table(path, 4), most=3) == []
    assert stored_rows(_table(path, 1, codec="gzip"), most=3) == []
    nested = pyarrow.array([[1]])
    assert stored_rows(_table(path, 1, top1=nested), most=3) == []
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    assert stored_rows(path, most=3) == []


def _read_bomb(path: str) -> int:
    return len(stored_rows(Path(path), most=20_000))


def test_a_text_that_is_repeated_takes_memory_once(tmp_path: Path) -> None:
    index = pyarrow.array([0] * 20_000, pyarrow.int32())
    text = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * (1 << 20)]))
    path = _table(tmp_path / "results.parquet", 20_000, error=text)
    outcome = bounded(_read_bomb, str(path), memory_mib=1024, cpu_seconds=60)
    assert not outcome.error, outcome.trace
    assert outcome.memory_mib < 700


def test_an_attempt_that_is_a_path_is_the_first(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text(json.dumps({"attempt": "../../x", "error": ["a"]}))
    failure = read_failure(tmp_path)
    assert failure is not None
    assert (failure.attempt, failure.error) == (1, "")


def test_axes_without_end_are_not_columns() -> None:
    assert len(checked_row({f"axis.{n}": "a" for n in range(10_000)})) <= 64
