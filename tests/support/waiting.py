"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `true` returns once that is true; a test that waits longer fails."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return value
