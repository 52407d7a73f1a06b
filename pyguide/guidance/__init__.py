"""The training layer: capture, pairing and the guidance loss."""

from pyguide.guidance.guidance import Guidance
from pyguide.guidance.layers import LayerInfo, list_layers
from pyguide.guidance.pairing import Pair
from pyguide.guidance.plan import Plan, PlanRow

__all__ = ["Guidance", "LayerInfo", "Pair", "Plan", "PlanRow", "list_layers"]
