"""Distances between layers, built on :mod:`pyguide.ops`; each is one file here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyguide.distances.base import Distance
from pyguide.distances.bures import Bures
from pyguide.distances.costs import PairCost
from pyguide.distances.linear_cka import LinearCKA
from pyguide.distances.procrustes import Procrustes
from pyguide.distances.rbf_cka import RBFCKA
from pyguide.distances.ridge import Ridge
from pyguide.distances.rsa import RSA

__all__ = [
    "RBFCKA",
    "RSA",
    "Bures",
    "Distance",
    "LinearCKA",
    "PairCost",
    "Procrustes",
    "Ridge",
    "get_distance",
]

_BY_NAME: dict[str, Callable[[], Distance]] = {
    "cka": LinearCKA,
    "debiased_cka": partial(LinearCKA, debiased=True),
    "rbf_cka": RBFCKA,
    "debiased_rbf_cka": partial(RBFCKA, debiased=True),
    "rsa": RSA,
    "ridge": Ridge,
    "procrustes": Procrustes,
    "bures": Bures,
}


def get_distance(distance: str | Distance) -> Distance:
    """The distance called `distance`, or `distance` itself if it is one.

    Raises
    ------
    ValueError
        If no distance has that name.
    TypeError
        If `distance` is neither a name nor a :class:`Distance`.

    Examples
    --------
    >>> from pyguide.distances import get_distance
    >>> get_distance("debiased_cka")
    LinearCKA(debiased=True)
    """
    if isinstance(distance, Distance):
        return distance
    if not isinstance(distance, str):
        is_class = isinstance(distance, type) and issubclass(distance, Distance)
        given = f"the class: call {distance.__name__}()" if is_class else type(distance).__name__
        raise TypeError(
            f"distance must be a name ({', '.join(map(repr, _BY_NAME))}) or an object from "
            f"pyguide.distances, got {given}"
        )
    if distance not in _BY_NAME:
        raise ValueError(
            f"unknown distance {distance!r}: choose one of {', '.join(map(repr, _BY_NAME))}"
        )
    return _BY_NAME[distance]()
