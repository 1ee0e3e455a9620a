"""The two kinds of failure that a user meets, so that the command line can tell them apart, and how they say why."""

import errno


class ClcaError(ValueError):
    """A mistake in what was asked for: the message says what, where and what to do. Exit code 2 on the command line."""


class WorkError(RuntimeError):
    """The request was right, but the work failed (a loss that is not finite, a full disk). Exit code 1."""


def reason(error: Exception) -> str:
    """Why, in a few words for a sentence that names the place itself: a system's error without number and path."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def brief(text: str, most: int = 300) -> str:
    """A text on one line and cut to `most` characters: what a message quotes from a file may be of any length."""
    if len(text) > 10 * most:
        text = text[: 10 * most]
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} …"
