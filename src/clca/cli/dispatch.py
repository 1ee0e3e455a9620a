"""From the first word of a command line to the command that it names."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

from clca.errors import ClcaError

Table = Mapping[str, tuple[str, str]]
"""Name of a command → its module in `clca.cli.commands`, and what it does."""


def dispatch(prog: str, summary: str, commands: Table, argv: Sequence[str], more: str = "") -> int:
    """Call the command that `argv` names with the rest of it, or print the list of commands.

    Args:
        prog: Name of the program, such as "clca data".
        summary: What the help begins with.
        commands: The commands to choose from.
        argv: The words after the program's name.
        more: A paragraph at the end of the help.

    Raises:
        ClcaError: There is no such command.
    """
    if argv and argv[0] in commands:
        return import_module(f"clca.cli.commands.{commands[argv[0]][0]}").run(argv[1:])
    if not argv or argv[0] in ("-h", "--help", "help"):
        from clca.cli.text import wrapped

        width = max(map(len, commands))
        listed = [wrapped(f"{name:<{width}}  {what}", "  ", " " * (width + 4)) for name, (_, what) in commands.items()]
        last = [f"{prog} COMMAND --help for details.", *([wrapped(more)] if more else [])]
        print("\n".join([wrapped(summary), "", f"usage: {prog} COMMAND …", "", *listed, "", *last]))
        return 0 if argv else 2
    near = get_close_matches(argv[0], commands, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(commands)}"
    raise ClcaError(f"no command {argv[0]!r}: {hint}")
