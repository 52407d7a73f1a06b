"""Layer-by-layer comparison of networks over a data set."""

from pyguide.analysis.streaming import StreamingCKA

__all__ = ["StreamingCKA"]
