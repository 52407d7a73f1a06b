"""The layers of a model: finding, naming and recording them."""

from pyguide.capture.layers import LayerInfo, list_layers

__all__ = ["LayerInfo", "list_layers"]
