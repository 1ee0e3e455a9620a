"""What a run shows of its progress, and the forecast with which a long one begins."""

from collections.abc import Callable

import pytest

from clca.training import progress
from clca.training.progress import Display

Clock = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moves the clock of the display by so many seconds."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def steps(display: Display, advance: Clock, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        advance(seconds)
        display.step(step, 1.0, 10.0)


@pytest.mark.parametrize("done", [0, 30])
def test_a_long_run_begins_with_a_forecast_that_leaves_out_the_first_step(
    done: int, advance: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    display = Display(3, 100, done, True, bar=False)
    with caplog.at_level("INFO", "clca"):
        advance(200.0)  # compiles
        steps(display, advance, done + 1, done + 5, 2.0)
    left, epoch = (300 - done - 5) * 2, (100 - done - 5) * 2
    assert f"about {progress.duration(left)} of training left, {progress.duration(epoch)} to the end" in caplog.text


def test_a_short_run_has_none(advance: Clock, caplog: pytest.LogCaptureFixture) -> None:
    display = Display(2, 10, 0, True, bar=False)
    with caplog.at_level("INFO", "clca"):
        steps(display, advance, 1, 20, 1.0)
    assert "of training left" not in caplog.text


def test_lines_of_the_frozen_pass_have_the_time_left(advance: Clock, caplog: pytest.LogCaptureFixture) -> None:
    display = Display(1, 1, 0, True, bar=False)
    with caplog.at_level("INFO", "clca"):
        for done in (256, 300, 400, 1000):  # 256 were stored before
            display.features(done, 1000)
            advance(20.0)
    assert caplog.messages == ["features of the frozen model: image 400/1000  3 min left"]


def test_a_terminal_shows_the_frozen_pass_and_then_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    display = Display(1, 5, 0, True)
    for done in range(0, 41, 10):
        display.features(done, 40)
    display.step(5, 0.25, 10.0)
    display.close()
    shown = capsys.readouterr().err
    assert "features of the frozen model" in shown
    assert "40/40" in shown
    assert "loss 0.250" in shown


def test_nothing_is_shown_where_nothing_should_be(advance: Clock, caplog: pytest.LogCaptureFixture) -> None:
    display = Display(9, 900, 0, False, bar=False)
    with caplog.at_level("INFO", "clca"):
        steps(display, advance, 1, 20, 60.0)
        display.features(1, 2)
        advance(100.0)
        display.features(2, 2)
    assert caplog.messages == []
