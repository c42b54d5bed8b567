"""The one error that a user's mistake raises; standard library only.

`core/types.py`, where the other shared types live, imports jax, flax and optax, which
takes longer than many a command.
"""


class UserError(Exception):
    """A mistake of the user's: its message is one line that names the fix.

    The command line prints the message alone and exits with code 2.
    """


class ArgumentError(UserError, ValueError):
    """A wrong argument of a library function, which the command line passes on."""
