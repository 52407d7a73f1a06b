"""What all data sets of tokens share."""

__all__ = ["IGNORED"]

#: The label of a position that is not predicted.
IGNORED = -100
