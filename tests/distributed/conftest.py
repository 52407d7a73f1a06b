from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds import World


def _world(size: int, factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(size, factory.mktemp("world"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    """Worlds of 1 to 4 processes, made at first use."""

    class Worlds(dict):
        def __missing__(self, size: int) -> World:
            self[size] = World(size, tmp_path_factory.mktemp("world"))
            return self[size]

    made = Worlds()
    yield made
    for world in made.values():
        world.close()


@pytest.fixture(params=[1, 2, 3, 4])
def world(request: pytest.FixtureRequest, worlds: dict[int, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def fresh_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two processes that the test may end."""
    yield from _world(2, tmp_path_factory)
