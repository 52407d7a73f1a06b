"""What a user of the command line can do wrong."""

__all__ = ["UserError", "first_line"]


class UserError(Exception):
    """A user's mistake; the command line prints the message alone and exits with code 2."""


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type, if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
