"""How float32 features are multiplied on GPUs: as torch's own products are, unless told."""

from __future__ import annotations

import torch

from pyguide.ops import cpu
from pyguide.ops.contract import HIGHEST, PRECISIONS
from pyguide.ops.dispatch import backend_of
from pyguide.ops.tracing import constant_while_traced

__all__ = ["precision_code"]


def precision_code(precision: str | None, device: torch.device) -> int:
    """The code that operators take; None is torch's float32 matmul setting of this moment."""
    if backend_of(device) is cpu:
        return HIGHEST
    return PRECISIONS.index(_torch_setting() if precision is None else precision)


# A constant while Dynamo traces, which cannot trace torch's getters. Dynamo compiles again when
# TF32 becomes allowed or forbidden, so between "highest" and the others, but not when "high" and
# "medium" change places.
@constant_while_traced
def _torch_setting() -> str:
    # Follows set_float32_matmul_precision, allow_tf32 and fp32_precision, whichever came last.
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "highest"
    try:
        lowest = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # raised once fp32_precision was set to something else than the getter's
        lowest = False
    return "medium" if lowest else "high"
