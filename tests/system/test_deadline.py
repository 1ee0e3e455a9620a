"""Calls with a deadline."""

import subprocess
import sys
import threading
import time

import pytest

from clca.system.deadline import DeadlineThread


def test_calls_are_made_in_order_in_one_thread() -> None:
    calls, seen = DeadlineThread(), []
    for number in range(5):
        assert calls.call(lambda number=number: seen.append((number, threading.get_ident())) or number, 5) == number  # type: ignore[misc]
    assert [number for number, _ in seen] == list(range(5))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_what_a_call_raises_is_raised(error: BaseException) -> None:
    def fail() -> None:
        raise error

    calls = DeadlineThread()
    with pytest.raises(type(error)):
        calls.call(fail, 5)
    assert calls.call(lambda: 1, 5) == 1


def test_one_that_does_not_return_is_abandoned() -> None:
    calls, gate = DeadlineThread(), threading.Event()
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        calls.call(lambda: gate.wait(60), 0.05)
    with pytest.raises(TimeoutError, match="earlier request"):
        calls.call(lambda: 1, 60)
    assert time.monotonic() - begin < 30
    gate.set()


def test_it_does_not_keep_the_program_from_ending() -> None:
    code = (
        "import time; from clca.system.deadline import DeadlineThread\n"
        "try: DeadlineThread().call(lambda: time.sleep(600), 0.01)\n"
        "except TimeoutError: print('left')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "left\n"
