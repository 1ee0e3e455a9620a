"""Measuring: who is timed when, what is compared with what, and what memory a call takes."""

import gc
import os
import platform
from collections import Counter

import pytest
import torch
from memory_tasks import count_threads, fail, hold, in_turn

from clca.errors import ClcaError, WorkError
from clca.system.timing import (
    Spread,
    bandwidth,
    command,
    interleaved,
    machine,
    matrix_rate,
    peak_memory,
    rounds,
    speed_ups,
    using_threads,
    versions,
)

MIB = 2**20


def test_every_candidate_is_called_once_a_round_in_changing_order() -> None:
    called: list[str] = []
    calls = {name: (lambda name=name: called.append(name)) for name in "abcd"}
    times = interleaved(calls, repeats=6, warmup=2, seed=1)
    assert list(times) == list("abcd")
    assert all(len(seconds) == 6 for seconds in times.values())
    turns = ["".join(called[i : i + 4]) for i in range(0, len(called), 4)]
    assert len(turns) == 2 + 6
    assert all(sorted(turn) == list("abcd") for turn in turns)
    assert len(set(turns[2:])) > 2
    again: list[str] = []
    interleaved({name: (lambda name=name: again.append(name)) for name in "abcd"}, repeats=6, warmup=2, seed=1)
    assert again == called  # the seed decides the order


def test_garbage_is_not_collected_while_the_clock_runs() -> None:
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, repeats=2)
    assert seen == [False] * 3
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_a_candidate_that_fails_is_told_and_left_out() -> None:
    left = iter(range(3))  # the untimed call and two timed ones, then no more
    told, progress = [], Counter[str]()
    found = rounds(
        {"good": lambda: None, "bad": lambda: next(left)},
        failed=lambda name, error: told.append((name, type(error))),
        progress=lambda name: progress.update([name]),
    )
    first, second, third, fourth = (next(found) for _ in range(4))
    assert set(first) == set(second) == {"good", "bad"}
    assert set(third) == set(fourth) == {"good"}
    assert told == [("bad", StopIteration)]
    assert progress == {"good": 5, "bad": 4}


def test_rounds_end_when_no_candidate_is_left() -> None:
    assert list(rounds({"bad": lambda: 1 / 0}, failed=lambda *_: None)) == []


@pytest.mark.parametrize(("calls", "repeats"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_measure_is_refused(calls: dict, repeats: int) -> None:
    with pytest.raises(ClcaError, match="nothing to measure"):
        interleaved(calls, repeats)


def test_spread_and_speed_up_are_taken_round_by_round() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    values = [float(v) for v in range(11)]
    assert Spread.of(values) == Spread(5.0, 1.0, 9.0)
    # A machine that gets slower and slower: the ratio of medians hides nothing here, that of rounds is exact.
    times = {"dense": [1.0, 2.0, 9.0], "half": [0.5, 1.0, 4.5], "odd": [1.0, 1.0, 1.0]}
    found = speed_ups(times, "dense")
    assert found["half"] == Spread(2.0, 2.0, 2.0)
    assert found["dense"] == Spread(1.0, 1.0, 1.0)
    assert found["odd"].median == 2.0
    assert found["odd"].p90 == pytest.approx(7.6)


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1) as count:
        assert count == torch.get_num_threads() == machine()["threads"] == before + 1
    with using_threads(None) as count:
        assert count == before
    assert torch.get_num_threads() == before
    with pytest.raises(ClcaError, match="threads = 0"), using_threads(0):
        pass


def test_the_machine_is_told_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine()
    assert set(found) == {"cpu", "cpu_family", "cores", "threads", "flags", "memory_gib", "gpu", "system"}
    assert found["cpu"]
    assert found["cores"] >= 1
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
    monkeypatch.setattr("sys.argv", ["/opt/x/bin/clca", "benchmark", "/home/me/runs/first", "--out", "b c", "--quick"])
    assert command() == "clca benchmark first --out 'b c' --quick"
    assert platform.node() not in str(found).split()


def test_rates_are_plausible() -> None:
    # Far below and far above what any computer of these years does.
    assert 0.01 < matrix_rate(repeats=1) < 1e7
    assert 0.01 < bandwidth(repeats=1, mib=8) < 1e6


def test_peak_memory_is_that_of_the_call() -> None:
    assert peak_memory(hold, 96) / MIB == pytest.approx(192, abs=12)
    assert peak_memory(in_turn, 96) / MIB == pytest.approx(96, abs=12)


def test_a_failing_call_says_why() -> None:
    with pytest.raises(WorkError, match="ValueError: no such model"):
        peak_memory(fail)
    with pytest.raises(WorkError, match="ended with code 7"):
        peak_memory(os._exit, 7)
    peak_memory(count_threads, 3, threads=3)
