"""The training layer: capture, pairing and the guidance loss."""

from pyguide.guidance.guidance import Guidance
from pyguide.guidance.layers import LayerInfo, list_layers

__all__ = ["Guidance", "LayerInfo", "list_layers"]
