"""What a browser sends to the page and reads from it, without a browser."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx

API = "/gradio_api"


class PageClient:
    """One open page.

    Args:
        address: Of the page.
        seconds: How long an answer is waited for.
    """

    def __init__(self, address: str, seconds: float = 60) -> None:
        self.http = httpx.Client(base_url=address, timeout=seconds)
        self.session = uuid4().hex
        config = self.http.get("/config").json()
        self._names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        self._functions = config["dependencies"]

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """An uploaded file as a message names it."""
        answer = self.http.post(f"{API}/upload", files=[("files", (name, content))])
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def ask(self, element: str, event: str, *data: Any) -> dict[str, Any]:
        """What the elements show in the end after an event of one of them, by their names."""
        return self.outcome(self.begin(element, event, *data))

    def begin(self, element: str, event: str, *data: Any) -> dict[str, Any]:
        """The function that an event of an element calls, called."""
        function = self.function(element, event)
        self.join(function["id"], *data).raise_for_status()
        return function

    def outcome(self, function: dict[str, Any]) -> dict[str, Any]:
        """What the elements show, by their names, once a function that was called has ended."""
        shown: list[Any] = []
        for message in self.messages():
            if message["msg"] not in ("process_generating", "process_completed"):
                continue
            assert message["success"], message
            if not shown or message["msg"] == "process_completed":
                new = message["output"]["data"]
                shown = [old if _leaves(value) else value for old, value in zip(shown or new, new, strict=True)]
            else:
                shown = [_changed(old, steps) for old, steps in zip(shown, message["output"]["data"], strict=True)]
        return dict(zip((self._names[each] for each in function["outputs"]), shown, strict=True))

    def function(self, element: str, event: str) -> dict[str, Any]:
        """The first that an event of an element calls."""
        return next(
            each for each in self._functions
            if any(self._names.get(target) == element and kind == event for target, kind in each["targets"])
        )  # fmt: skip

    def join(self, function: int, *data: Any) -> httpx.Response:
        """Call a function by its number; what it answers is among the `messages`."""
        message = {
            "data": data, "fn_index": function, "session_hash": self.session, "event_data": None, "trigger_id": None,
        }  # fmt: skip
        return self.http.post(f"{API}/queue/join", json=message)

    def messages(self) -> Iterator[dict[str, Any]]:
        """To this page, until all that it called has ended."""
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


def _leaves(value: Any) -> bool:
    """Whether this is an update of nothing."""
    return isinstance(value, dict) and value.get("__type__") == "update" and set(value) <= {"__type__", "props"}


def _changed(old: Any, steps: list[Any]) -> Any:
    """What Gradio's steps make of a value that is replaced as a whole; others are not of interest here."""
    for kind, place, value in steps:
        if kind == "replace" and not place and not _leaves(value):
            old = value
    return old
