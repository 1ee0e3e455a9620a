"""CSV lists of images from anybody: accepted, or refused in one line that names the file, within little memory."""

import os
from pathlib import Path
from typing import Any

import pytest
from bounded import bounded, refused, refused_by_command_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import clca.data
from clca.data.sources import folder_csv
from clca.data.sources.folder_csv import LONGEST_LABEL, LONGEST_LINE, MOST_COLUMNS, read_listing
from clca.errors import ClcaError

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"memory_mib": 512, "cpu_seconds": 20}
HEAD = b"path,label\na.png,x\nb.png,y\n"
LISTS = {
    "a line without end": HEAD + b"x" * (5 << 20),
    "a header without end": b"path,label," + b"x" * (5 << 20),
    "a quoted text without end": HEAD + b'"' + b"x\n" * (2 << 20),
    "columns without end": b"path,label," + b"," * MOST_COLUMNS + b"\n" + b"a.png,x\n" * 1000,
    "a long label": HEAD + b"a.png," + b"y" * (LONGEST_LABEL + 1),
    "a label of many digits": b"path,label\na.png,1\nb.png," + b"9" * 5000,
    "a null byte in a path": b"path,label\na\0.png,x\nb\0.png,y\n",
    "a null byte in a label": HEAD + b"c.png,y\0\n",
    "an escape sequence in a label": HEAD + b"a.png,\x1b[2J\n",
    "an escape sequence in a path": b"path,label\n\x1b[2J.png,x\n\x1b[31m.png,y\n",
    "an escape sequence in a split": b"path,label,split\na.png,x,\x1b[2J\n",
    "an escape sequence in the header": b"\x1b[2J,label\na.png,x\n",
    "long paths that are missing": b"path,label\n" + (b"p" * 60_000 + b",x\n") * 50,
    "UTF-16": "path,label\na.png,x\n".encode("utf-16"),
    "not UTF-8": HEAD + b"\xff.png,x\n",
    "not UTF-8 in the header": b"\xff\xfe,path,label\n",
    "half a character": HEAD + b"a.png,\xed\xa0\x80\n",
    "nothing": b"",
    "null bytes": b"\0" * 10_000,
}


def _listed(path: str) -> int:
    return sum(map(len, read_listing(path).splits.values()))


def _written(folder: Path, content: bytes) -> str:
    for name in {"a.png", "b.png"} - set(os.listdir(folder)):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "theirs.csv").write_bytes(content)
    return str(folder / "theirs.csv")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_refused_in_a_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    message = refused(_listed, _written(tmp_path, LISTS[name]), **LIMITS)
    assert "theirs.csv" in message
    assert len(message) < 2500
    assert message.isprintable()


def test_the_command_line_refuses_it_too(tmp_path: Path) -> None:
    path = _written(tmp_path, LISTS["a line without end"])
    line = refused_by_command_line("train", path, "--model", "vit_tiny_patch16_224", **LIMITS)
    assert "theirs.csv" in line
    assert "\n" not in line


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "theirs.csv")
    assert "regular file" in refused(_listed_as_csv, str(tmp_path / "theirs.csv"), **LIMITS)


def _listed_as_csv(path: str) -> int:
    return len(read_listing(path, "csv").classes)


@pytest.mark.parametrize(("limit", "value", "text"), [("MOST_ROWS", 3, "more than 3 rows"), ("MOST_BYTES", 30, "MiB")])
def test_rows_and_bytes_have_limits(
    limit: str, value: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _written(tmp_path, HEAD + b"a.png,x\n" * 2)
    monkeypatch.setattr(folder_csv, limit, value)
    with pytest.raises(ClcaError, match=text):
        read_listing(path)


def test_many_missing_files_take_no_memory(tmp_path: Path) -> None:
    path = _written(tmp_path, b"path,label\n" + (b"p" * 1000 + b",x\n") * 60_000)
    outcome = bounded(_listed, path, **LIMITS)
    assert "60000 file(s) missing" in outcome.message
    assert outcome.memory_mib < 30


def test_what_is_within_the_limits_is_read(tmp_path: Path) -> None:
    long = LONGEST_LABEL * "9"
    path = _written(tmp_path, b"path,label,more\na.png,1,%b\nb.png,%b,\n" % (b"x" * (LONGEST_LINE - 20), long.encode()))
    assert read_listing(path).classes == ["1", long]
    assert clca.data.open(path, "train").paths


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(0, 8),
            st.sampled_from([b'"', b"\0", b"\r", b"\xff", b",", b";", b"\n", b"9" * 5000, b"\xe2\x80\xa8"])
            | st.binary(max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_list_is_accepted_or_refused_in_a_line(cuts: list[tuple[int, int, bytes]], tmp_path: Path) -> None:
    content = b"path,label,split\na.png,1,train\nb.png,2,train\n"
    for place, length, inserted in cuts:
        content = content[:place] + inserted + content[place + length :]
    path = _written(tmp_path, content)
    message = ""
    try:
        read_listing(path)
    except ClcaError as error:
        message = str(error)
    assert "\n" not in message
    assert "\x1b" not in message
