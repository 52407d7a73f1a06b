"""The training layer: pairing, schedules, the guide and the guidance loss."""

from pyguide.guidance import schedules
from pyguide.guidance.batch_memory import BatchMemory
from pyguide.guidance.guidance import Guidance
from pyguide.guidance.guide_cache import GuideCache
from pyguide.guidance.large_batch import LargeBatch, StepLosses
from pyguide.guidance.noise import gaussian_noise
from pyguide.guidance.pairing import Pair
from pyguide.guidance.plan import Plan, PlanRow

__all__ = [
    "BatchMemory",
    "Guidance",
    "GuideCache",
    "LargeBatch",
    "Pair",
    "Plan",
    "PlanRow",
    "StepLosses",
    "gaussian_noise",
    "schedules",
]
