"""Distance operators: Gram matrices, CKA and their gradients for many layers at once."""

from pyguide.ops.cka import CKALoss, cka, cka_matrix, cka_pairs, cka_pairs_and_flags
from pyguide.ops.gram import gram

__all__ = ["CKALoss", "cka", "cka_matrix", "cka_pairs", "cka_pairs_and_flags", "gram"]
