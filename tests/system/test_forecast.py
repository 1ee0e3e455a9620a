"""The time left: nothing before it means something, and then about what it is."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from clca.benchmark import progress as benchmark_progress
from clca.benchmark.progress import Meter
from clca.system.forecast import Forecast, TimeLeftColumn, seconds_left


@pytest.mark.parametrize(
    ("done", "total", "seconds", "equal", "left"),
    [
        (0, 100, 60, False, None), (2, 100, 60, False, None), (5, 100, 60, False, 1140), (50, 100, 4.9, False, None),
        (3, 1000, 60, True, None), (4, 1000, 60, True, 14940), (100, 100, 60, False, 0), (1, 0, 60, False, None),
        (120, 100, 60, False, 0),
    ],
)  # fmt: skip
def test_the_rule(done: float, total: float, seconds: float, equal: bool, left: float | None) -> None:
    assert seconds_left(done, total, seconds, equal_units=equal) == left


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 1e9), st.booleans())
def test_it_is_never_negative_nor_infinite(done: float, total: float, seconds: float, equal: bool) -> None:
    left = seconds_left(done, total, seconds, equal_units=equal)
    assert left is None or 0 <= left < float("inf")


@pytest.mark.parametrize("before", [0, 40])
def test_warming_up_and_what_was_done_before_do_not_count(before: int) -> None:
    now = [100.0]  # the first unit compiles
    forecast = Forecast(100, equal_units=True, clock=lambda: now[0])
    for done in range(before + 1, before + 6):
        assert forecast.left is None or done > before + 3
        forecast.update(done)
        now[0] += 2.0
    now[0] -= 2.0
    assert forecast.left == pytest.approx(2 * (95 - before))
    now[0] += 10  # nothing new: it comes closer
    assert forecast.left == pytest.approx(2 * (95 - before) - 10)


def test_the_meter_of_a_benchmark_forecasts_nothing_of_its_first_percent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(benchmark_progress, "monotonic", lambda: now[0])
    caplog.set_level("INFO", "clca")
    for deadline, first, last in ((None, "a: 2%", "a: 50%, 100 s left"), (180.0, "a: 2%, at most about 80 s left",
                                                                         "a: 50%, 0 s left")):  # fmt: skip
        now[0] = 0.0
        caplog.clear()
        meter = Meter(deadline)
        meter.show(0, "a")
        now[0] = 100.0  # making models, rates of the machine
        meter.show(0.02, "a")
        now[0] = 200.0
        meter.show(0.5, "a")
        assert caplog.messages[0] == first
        assert caplog.messages[1].startswith(last[:7])
    assert caplog.messages[1] == "a: 50%, 0 s left"  # the deadline is over


def test_a_bar_shows_a_dash_until_then() -> None:
    column, progress = TimeLeftColumn(), Progress()
    progress.add_task("x", total=1000, completed=10)
    (task,) = progress.tasks
    assert column.render(task).plain == "–"
    task.completed = 20
    assert column.render(task).plain == "–"
    forecast = column._forecasts[task.id]
    forecast._start = (20, forecast._clock() - 60)
    task.completed = 70
    assert column.render(task).plain.startswith("0:1")
    task.completed = 1000
    task.finished_time = 1.0
    assert column.render(task).plain == ""
