"""Names of files as text: UTF-8, whatever Python takes them for."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clca.system import paths
from clca.system.paths import as_path, as_text


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_is_given_back(name: bytes) -> None:
    assert os.fsencode(as_path(as_text(os.fsdecode(name)))) == os.fsencode(paths.Path(os.fsdecode(name)))


@pytest.mark.parametrize("text", ["Rosé", "赤霞珠", "plain", os.fsdecode(b"caf\xe9")])
def test_a_name_that_python_reads_as_latin_1_is_what_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = text.encode("utf-8", "surrogateescape")
    monkeypatch.setattr(paths.os, "fsencode", lambda name: str(name).encode("latin-1", "surrogateescape"))
    monkeypatch.setattr(paths.os, "fsdecode", lambda name: name.decode("latin-1", "surrogateescape"))
    assert as_text(raw.decode("latin-1")) == text
    assert str(as_path(text)) == raw.decode("latin-1")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_that_no_file_can_be_called_is_left_as_it_is(text: str) -> None:
    assert as_text(text) == text
    assert str(as_path(text)) == text
