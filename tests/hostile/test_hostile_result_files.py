"""Result files from anybody: folders are read without a crash, and what is wrong in them is left out."""

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from bounded import bounded, run_clca
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from clca.demo import run as demo
from clca.demo.recipe import METHODS, DemoSettings
from clca.errors import ClcaError, WorkError
from clca.evaluation import keep_rate_sweep
from clca.evaluation.stored import evaluations
from clca.report.run.page import read_run
from clca.study.results.folder import FORMAT, read_failure, read_study_file
from clca.study.results.rows import COLUMNS, checked_row
from clca.study.results.stored_table import stored_rows
from clca.study.results.table import row_of
from clca.study.run.claim_files import Owner, newest
from clca.study.run.job import _update_paths
from clca.system.files import read_csv, read_json
from clca.training.config import TrainConfig
from clca.training.trainer import finished_run

pytestmark = pytest.mark.slow

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


# -- values of other types ---------------------------------------------------------------------------------------------

SUMMARY = {"epochs": 2, "steps": 6, "kept": "last", "kept_epoch": 2, "train": {"loss": 1.0, "top1": 0.5},
           "watched": {"loss": 1.1, "top1": 0.4, "top5": 1.0, "macro": 0.4, "images": 6}, "seconds": 0.2}  # fmt: skip
NUMBERS = {"fingerprint": "abc", "data": "leaves", "split": "test", "keep_rate": 0.5, "images": 6, "top1": 0.5,
           "top5": 1.0, "macro": 0.5, "gmacs": 1.0, "images_per_second": 3.0, "tokens_per_block": [5, 3]}  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.20}")
@pytest.mark.parametrize("name", SUMMARY)
def test_a_summary_of_other_types_is_refused_in_a_line(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY))
    assert finished_run(tmp_path).steps == 6
    if name == "watched" and value is None:  # a run that watched no split
        return
    path.write_text(json.dumps({**SUMMARY, name: value}))
    with pytest.raises(WorkError, match=f"summary.json: has an invalid value of {name}; remove it"):
        finished_run(tmp_path)


@pytest.mark.parametrize("value", [value for value in WRONG if value is not None], ids=lambda value: f"{value!r:.20}")
@pytest.mark.parametrize("name", ["images", "top1", "top5", "macro", "gmacs", "images_per_second", "tokens_per_block"])
def test_an_evaluation_of_other_types_is_made_again(name: str, value: Any, tmp_path: Path) -> None:
    for beside in keep_rate_sweep.OTHER_FILES:
        (tmp_path / beside).touch()
    (tmp_path / "evaluation.json").write_text(json.dumps(NUMBERS))
    assert keep_rate_sweep._reusable(tmp_path, "abc") == NUMBERS
    (tmp_path / "evaluation.json").write_text(json.dumps({**NUMBERS, name: value}))
    found = keep_rate_sweep._reusable(tmp_path, "abc")
    assert found is None or (name in ("gmacs", "images_per_second") and value == 10**19)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.20}")
def test_a_demo_of_other_types_is_run_again(value: Any, tmp_path: Path) -> None:
    for method in METHODS:
        (tmp_path / method.folder).mkdir()
        (tmp_path / method.folder / "summary.json").touch()
    (tmp_path / demo.PICTURE).touch()
    row = {"top1": 0.5, "gmacs": 0.1, "ms": 1.0, "ms_low": 0.9, "ms_high": 1.1, "tokens": [5, 3]}
    rows = [{"name": method.name, "run": method.folder, **row} for method in METHODS]

    def left(**content: Any) -> Any:
        (tmp_path / demo.RESULTS).write_text(json.dumps({"test_images": 6, "rows": rows, **content}))
        return demo._stored_result(tmp_path, DemoSettings())

    assert left().rows[-1].tokens == (5, 3)
    assert left(test_images=value) is None
    assert left(rows=value) is None
    assert left(rows=[value, *rows[1:]]) is None
    for name in ("name", "run", "top1", "tokens"):
        assert left(rows=[{**rows[0], name: value}, *rows[1:]]) is None


@pytest.mark.parametrize(
    "train", [*WRONG, {"data": []}, {"data": "x"}, {"data": {"root": []}}], ids=lambda v: f"{v!r:.20}"
)
def test_a_run_with_other_settings_is_left_as_it_is(train: Any, tmp_path: Path) -> None:
    config = TrainConfig.model_validate({"model": {"backbone": "vit_tiny_patch16_224"}, "data": {"root": "images"}})
    (tmp_path / "config.json").write_text(json.dumps({"train": train}))
    _update_paths(tmp_path, config)
    expected = train
    if isinstance(train, dict) and isinstance(train.get("data"), dict):
        expected = {"weights": None, "data": {"root": "images", "source": None}}
    assert json.loads((tmp_path / "config.json").read_text()) == {"train": expected}


# -- bytes -------------------------------------------------------------------------------------------------------------

# What replaces some bytes of a whole file: where (as a share of it), how many, by what.
_CUTS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=4)
_JSON_CUTS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.sampled_from([b"[", b"{", b"]", b"}", b'"', b",", b":", b"null", b"-1", b"1e999", b"9" * 400, b"9" * 5000,
                         b"NaN", b"[[1]]", b'{"a":1}', b"\\ud800", b"\xff", b"\\u001b[2J"])
        | st.binary(max_size=3),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def _damaged(content: bytes, cuts: Sequence[tuple[float, int, bytes]]) -> bytes:
    for share, length, inserted in cuts:
        place = int(share * len(content))
        content = content[:place] + inserted + content[place + length :]
    return content


def _read_everything(folder: Path) -> None:
    """All that reads JSON files of a run or study; a refusal is one line."""
    for read in (read_study_file, read_failure, read_run, finished_run, evaluations, newest):
        message = ""
        try:
            read(folder)
        except (ClcaError, WorkError) as error:
            message = str(error)
        assert message.isprintable() or not message, message
    keep_rate_sweep._reusable(folder, "abc")
    row = row_of(folder, "a-0123456789ab")
    assert all(value is None or isinstance(value, (str, int, float)) for value in row.values())
    read_json(folder / "config.json")


def _fuzz_json() -> None:
    study = {"format": FORMAT, "name": "theirs", "axes": {"arm": ["base", "clca"]}, "seeds": [0], "total": 2}
    config = {"train": {"model": {"backbone": "x"}, "data": {"root": "leaves"}}, "resolved": {"device": "cpu"}}
    files: dict[str, Any] = {
        "study.json": study,
        "runs/a-0123456789ab/result.json": ROW,
        "runs/a-0123456789ab/run.json": {"row": ROW, "train": config["train"]},
        "failure.json": {"error": "no", "attempt": 2, "traceback": "…"},
        "claim.1": json.loads(Owner("a", "host", "machine", 5, "now", "running", 1.0).dump()),
        "run.json": {},
        "config.json": config,
        "run/config.json": config,
        "summary.json": SUMMARY,
        "run/summary.json": SUMMARY,
        "metrics.jsonl": {"step": 3, "loss": 1.0, "grad_max": 2.0, "train": {"loss": 1, "top1": 0.5}},
        "run/metrics.jsonl": {"step": 3, "loss": 1.0, "grad_max": 2.0, "train": {"loss": 1, "top1": 0.5}},
        "evaluation.json": NUMBERS,
        "evaluation/test/evaluation.json": NUMBERS,
        "run/evaluation/test/evaluation.json": NUMBERS,
        **{name: {} for name in keep_rate_sweep.OTHER_FILES},
    }
    folder = Path(tempfile.mkdtemp())
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(name=st.sampled_from(sorted(files)), cuts=_JSON_CUTS)
    def check(name: str, cuts: list[tuple[float, int, bytes]]) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(_damaged(whole, cuts))
        try:
            _read_everything(folder)
        finally:
            (folder / name).write_bytes(whole)

    check()


def test_damaged_json_is_left_out_or_refused_in_a_line() -> None:
    outcome = bounded(_fuzz_json, memory_mib=512, cpu_seconds=120)
    assert not outcome.error, outcome.trace


def _fuzz_table() -> int:
    path = Path("results.parquet")
    wholes = []
    for codec in ("snappy", "none"):
        file = io.BytesIO()
        rows = {name: pyarrow.array(["base", None, "clca"]) for name in COLUMNS}
        parquet.write_table(pyarrow.table({**rows, "top1": pyarrow.array([0.1, 0.2, None])}), file, compression=codec)
        wholes.append(file.getvalue())
    accepted = 0

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(whole=st.sampled_from(wholes), cuts=_CUTS, footer=st.booleans())
    def check(whole: bytes, cuts: list[tuple[float, int, bytes]], footer: bool) -> None:
        nonlocal accepted
        # Half of the time within the footer, which says where all else is; lengths stay, or hardly any file is read on.
        begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little") if footer else 0
        same = [(share, len(inserted), inserted) for share, _, inserted in cuts]
        path.write_bytes(whole[:begin] + _damaged(whole[begin:], same))
        rows = stored_rows(path, most=3)
        assert len(rows) <= 3
        assert all(value is None or isinstance(value, (str, int, float)) for row in rows for value in row.values())
        accepted += bool(rows)

    check()
    return accepted


def test_a_damaged_table_is_ignored_or_read() -> None:
    outcome = bounded(_fuzz_table, memory_mib=1024, cpu_seconds=120)
    assert not outcome.error, outcome.trace
    assert outcome.value > 20


def test_study_json_may_be_larger_than_other_files(tmp_path: Path) -> None:
    seeds = list(range(4_000_000))
    folder = _study(tmp_path, "{}", seeds=seeds)
    assert (folder / "study.json").stat().st_size > 20 << 20
    assert len(read_study_file(folder)["seeds"]) == len(seeds)
    assert read_json(folder / "study.json") is None


def test_of_metrics_only_so_much_is_read(tmp_path: Path) -> None:
    line = json.dumps({"step": 1, "loss": 1.0, "grad_max": 2.0, "x": "x" * 1000}) + "\n"
    long = '{"step": 2, "x": "' + "x" * (5 << 20) + '"}\n'
    (tmp_path / "metrics.jsonl").write_text(long + line * 100_000)
    outcome = bounded(_count_steps, str(tmp_path), memory_mib=256, cpu_seconds=60)
    steps = outcome.value
    assert (64 << 20) // len(line) - 6000 < steps <= (64 << 20) // len(line), outcome.trace


def _count_steps(folder: str) -> int:
    from clca.system.files import file_objects

    return sum(1 for each in file_objects(Path(folder) / "metrics.jsonl") if each["step"] == 1)


def test_tables_of_an_evaluation_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text("true,a,b\na,1,0\nb,0,1\n")
    assert read_csv(path) == [["true", "a", "b"], ["a", "1", "0"], ["b", "0", "1"]]
    for content in (b"1," * 2_000_001, b"x" * (17 << 20), b"a,\xff\n", b'"' + b"x" * 200_000):
        path.write_bytes(content)
        assert bounded(_csv_lines, str(path), memory_mib=256, cpu_seconds=20).value == []


def _csv_lines(path: str) -> list[list[str]]:
    return read_csv(Path(path))
