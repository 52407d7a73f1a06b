"""The training layer: capture, pairing and the guidance loss."""

from pyguide.guidance.guidance import Guidance
from pyguide.guidance.layers import LayerInfo, list_layers
from pyguide.guidance.pairing import Pair

__all__ = ["Guidance", "LayerInfo", "Pair", "list_layers"]
