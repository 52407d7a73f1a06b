"""The training layer: capture, pairing, schedules, the guide and the guidance loss."""

from pyguide.guidance import schedules
from pyguide.guidance.guidance import Guidance
from pyguide.guidance.layers import LayerInfo, list_layers
from pyguide.guidance.noise import gaussian_noise

__all__ = ["Guidance", "LayerInfo", "gaussian_noise", "list_layers", "schedules"]
