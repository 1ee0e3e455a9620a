"""Limits on calls of Gradio's functions, and on what is kept for a page that does not read its answers."""

from typing import Any

import gradio as gr
from gradio.routes import file_upload_statuses

from clca.serve.errors import Refusal

_SESSIONS = 256  # each keeps what its page was last shown: pictures, so some 100 kB
_WAITING = 200  # messages; a page that listens has none or a few, one behind a slow line some more


def bound_sessions(blocks: gr.Blocks) -> None:
    """Keep less of pages that are gone; called before they are mounted. None of ours reads its old state."""
    blocks.state_session_capacity = _SESSIONS


class AllowedCalls:
    """Checks messages that call functions of a page.

    Args:
        blocks: The page.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        self._blocks = blocks

    def check(self, content: Any) -> None:
        """Refuse a message to /queue/join that names no function, or comes from a page that does not read its answers.

        Raises:
            Refusal: 400 or 429.
        """
        content = content if isinstance(content, dict) else {}
        function, session = content.get("fn_index"), content.get("session_hash")
        if type(function) is not int or function not in self._blocks.fns or not isinstance(session, str):
            raise Refusal(400, "broken_message", "the message names no function of the page, or no session")
        waiting = self._blocks._queue.pending_messages_per_session.get(session)
        if waiting is not None and waiting.qsize() > _WAITING:
            raise Refusal(429, "busy", "the answers to this page are not read: open it again", {"Retry-After": "5"})


class UploadProgress:
    """Progress of an upload, for the page that sends it.

    Args:
        name: That the page gave it; None if it does not ask for progress.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        if name is not None:
            file_upload_statuses.track(name)

    def add(self, file: str, chunk: bytes) -> None:
        """A chunk of a file has arrived."""
        if self._name is not None:
            file_upload_statuses.append(self._name, file, chunk)

    def end(self) -> None:
        """The upload is complete, or refused."""
        if self._name is not None:
            file_upload_statuses.set_done(self._name)

    def forget(self) -> None:
        """Drop the progress; the page has had time to read it."""
        if self._name is not None:
            file_upload_statuses.stop_tracking(self._name)
            file_upload_statuses._signals.pop(self._name, None)
