"""Comparing the layers of two networks over a data set."""

from pyguide.analysis.similarity import LayerSimilarity

__all__ = ["LayerSimilarity"]
