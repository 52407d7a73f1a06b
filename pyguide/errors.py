"""What a user of the command line can do wrong."""

import traceback
from pathlib import Path

__all__ = ["UserError", "described", "first_line"]


class UserError(Exception):
    """A user's mistake; the command line prints the message alone and exits with code 2."""


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type, if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def described(error: BaseException) -> str:
    """An error that the user's code raised in one line, with its place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason} ({Path(last.filename).name}, line {last.lineno})"
