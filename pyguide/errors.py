"""What a user of the command line can do wrong."""

__all__ = ["UserError"]


class UserError(Exception):
    """A user's mistake; the command line prints the message alone and exits with code 2."""
