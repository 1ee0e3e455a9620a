"""What of Gradio's functions a message may call, and how much is kept for a page that does not listen."""

from typing import Any

import gradio as gr
from gradio.routes import file_upload_statuses

from clca.serve.errors import Refusal

_SESSIONS = 256  # each keeps what its page was last shown: pictures, so some 100 kB
_WAITING = 200  # messages; a page that listens has none or a few, one behind a slow line some more


def bound_sessions(blocks: gr.Blocks) -> None:
    """Keep less of pages that are gone; called before they are mounted. None of ours reads its old state."""
    blocks.state_session_capacity = _SESSIONS


class Calls:
    """Checks messages that call functions of a page.

    Args:
        blocks: The page.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        self._blocks = blocks

    def check(self, content: Any) -> None:
        """Refuse a message to /queue/join that names no function, or comes from where nobody reads the answers.

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


class Arriving:
    """How far an upload is, for the page that sends it.

    Args:
        name: That the page gave it; None where it does not want to know.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        if name is not None:
            file_upload_statuses.track(name)

    def tell(self, file: str, piece: bytes) -> None:
        """A piece of a file is here."""
        if self._name is not None:
            file_upload_statuses.append(self._name, file, piece)

    def end(self) -> None:
        """It is here, or refused."""
        if self._name is not None:
            file_upload_statuses.set_done(self._name)

    def forget(self) -> None:
        """The page has had its time to read."""
        if self._name is not None:
            file_upload_statuses.stop_tracking(self._name)
            file_upload_statuses._signals.pop(self._name, None)
