"""pyguide: representational alignment for PyTorch with fused native kernels."""

import sys
from pathlib import Path

try:
    import torch  # noqa: F401  first: its OpenMP runtime then serves the native module too

    import pyguide._native  # noqa: F401
except ImportError as error:
    _part = "pyguide's native module" if "torch" in sys.modules else "torch"
    _root = Path(__file__).resolve().parent.parent
    if (_root / "CMakeLists.txt").exists():
        _advice = (
            f"{_root} holds pyguide's sources, and they are not installed for this Python. Install "
            "them in place from that folder with: pip install -c constraints.txt -e '.[test]' ; "
            "or, to use a pyguide that is already installed, start Python in another folder."
        )
    elif _part == "torch":
        _advice = "Install it for this Python: pip install torch"
    else:
        _advice = "Install it again, from its sources: pip install --force-reinstall --no-deps ."
    raise ImportError(f"{_part} does not load ({error}). {_advice}") from error

from pyguide import distances
from pyguide._version import __version__
from pyguide.backends import Backend, backends
from pyguide.capture import LayerInfo, list_layers
from pyguide.guidance import Guidance, Pair
from pyguide.ops import CKALoss, cka, cka_matrix, cka_pairs, gram

__all__ = [
    "Backend",
    "CKALoss",
    "Guidance",
    "LayerInfo",
    "Pair",
    "__version__",
    "backends",
    "cka",
    "cka_matrix",
    "cka_pairs",
    "distances",
    "gram",
    "list_layers",
]
