"""The two kinds of failure that a user meets, so that the command line can tell them apart."""


class ClcaError(ValueError):
    """A mistake in what was asked for: the message says what, where and what to do. Exit code 2 on the command line."""


class WorkError(RuntimeError):
    """The request was right, but the work failed (a loss that is not finite, a full disk). Exit code 1."""
