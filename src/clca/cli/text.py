"""Paragraphs as wide as the terminal."""

import shutil
import textwrap


def wrapped(paragraph: str, first: str = "", further: str = "", break_long_words: bool = False) -> str:
    """A paragraph in lines as wide as the terminal.

    Args:
        paragraph: One line.
        first: What its first line begins with.
        further: What the others begin with.
        break_long_words: Break a word that is longer than a line.
    """
    return textwrap.fill(
        paragraph,
        terminal_width(),
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=break_long_words,
        break_on_hyphens=False,
    )


def terminal_width() -> int:
    """Columns of the terminal, 40 at least."""
    return max(40, shutil.get_terminal_size().columns)
