"""Comparing the layers of two networks over a data set."""

from pyguide.analysis.compare import compare_networks
from pyguide.analysis.similarity import LayerSimilarity
from pyguide.analysis.streaming import StreamingCKA

__all__ = ["LayerSimilarity", "StreamingCKA", "compare_networks"]
