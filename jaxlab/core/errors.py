"""The one error that a user's mistake raises; standard library only.

`core/types.py`, where the other shared types live, imports jax, flax and optax, which
takes longer than many a command.
"""

import re

# Controls, line ends of Unicode, marks of direction, halves of surrogate pairs.
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tabs and line ends


def spell_out(text: str) -> str:
    r"""A text of one line, for a terminal: what is no character to be seen is spelled.

    Names in files of others may hold line ends, escape codes that a terminal obeys, and
    marks that turn the direction of writing.

    >>> print(spell_out("a\x1b[2K\nb\u202ec, é 你"))
    a\x1b[2K\nb\u202ec, é 你
    """
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def spell_out_controls(text: str) -> str:
    r"""A text of many lines and any direction, for a terminal: it cannot command it.

    >>> print(spell_out_controls("a\x1b[2K\r"))
    a\x1b[2K\r
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def has_commands(text: str) -> bool:
    """Whether `spell_out` would change it."""
    return _COMMANDS.search(text) is not None


class UserError(Exception):
    """A mistake of the user's: its message is one line that names the fix.

    The command line prints the message alone and exits with code 2.
    """


class ArgumentError(UserError, ValueError):
    """A wrong argument of a library function, which the command line passes on."""
