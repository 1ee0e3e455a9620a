"""Calls that must not hold up the program: each has a deadline, after which it is abandoned."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class DeadlineThread:
    """Runs calls one after the other in one thread of its own, as libraries with thread-local state need it.

    The thread is a daemon: a call that never returns does not keep the program from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[tuple[Any, BaseException | None]]]]
        self._calls = queue.SimpleQueue()
        self._stuck = False
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """The result of a call.

        Raises:
            TimeoutError: It took longer, or an earlier call did and may still be running.
            Exception: What the call raised.
        """
        if self._stuck:
            raise TimeoutError("an earlier request was not answered")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="clca-deadline", daemon=True)
            self._thread.start()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._calls.put((function, answer))
        try:
            result, error = answer.get(timeout=seconds)
        except queue.Empty:
            self._stuck = True
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            function, answer = self._calls.get()
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))
