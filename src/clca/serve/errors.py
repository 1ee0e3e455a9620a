"""Why a request, or one image of it, is not answered."""

from collections.abc import Mapping


class Refusal(Exception):
    """The error that a client gets instead of an answer.

    Args:
        status: HTTP status.
        code: The reason as one word, for programs.
        message: The reason, and what to do, for people; never holds a path of this machine.
        headers: Further HTTP headers.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """As JSON."""
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}
