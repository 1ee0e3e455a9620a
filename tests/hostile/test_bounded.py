"""The harness itself: it must end what goes beyond its limits, or the tests that rely on it hold nothing."""

import pytest
from bounded import bounded, refused, refused_by_command_line

from clca.errors import ClcaError

pytestmark = pytest.mark.slow


def _take(mib: int) -> int:
    return len(bytearray(mib * 2**20))


def _spin() -> None:
    while True:
        pass


def _refuse(text: str) -> None:
    raise ClcaError(text)


def test_a_result_comes_back() -> None:
    outcome = bounded(_take, 64)
    assert outcome.value == 64 * 2**20
    assert not outcome.error


def test_memory_beyond_the_limit_is_refused_by_the_system() -> None:
    assert "MemoryError" in bounded(_take, 400, memory_mib=256).error


def test_time_beyond_the_limit_ends_the_child() -> None:
    with pytest.raises(pytest.fail.Exception, match="went beyond"):
        bounded(_spin, cpu_seconds=1)


def test_only_a_refusal_in_one_line_counts() -> None:
    assert refused(_refuse, "x: is not y") == "x: is not y"
    with pytest.raises(AssertionError, match="more than one line"):
        refused(_refuse, "x\ny")
    with pytest.raises(AssertionError, match="was not refused"):
        refused(_take, 1)


def test_the_command_line_answers_too() -> None:
    assert "no-such-run" in refused_by_command_line("evaluate", "no-such-run")
