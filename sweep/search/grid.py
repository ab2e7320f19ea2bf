"""A space as points that can be counted, where they can."""

import math
from collections.abc import Collection, Iterable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np

from sweep.study.space import Space

Point = tuple[int, ...]  # positions along the settings of a space, in its order


class Grid:
    """The points of a space; they mean something only where its `size` is finite."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._counts = [search.count for search in space.values()]

    @property
    def size(self) -> float:
        """How many points there are; infinity where some setting has any number of values."""
        return math.prod(self._counts)

    def point(self, params: dict[str, Any]) -> Point | None:
        """None where `params` lack a setting of the space or lie beside it."""
        if not self.space.keys() <= params.keys():
            return None
        positions = [search.position(params[name]) for name, search in self.space.items()]
        return None if None in positions else tuple(place for place in positions if place is not None)

    def params(self, point: Point) -> dict[str, Any]:
        return {
            name: search.value_at(place)
            for (name, search), place in zip(self.space.items(), point, strict=True)
        }

    def nearest(
        self, start: Point, taken: Collection[Point], free: Collection[str], random: np.random.Generator
    ) -> Point | None:
        """The point not `taken` that differs from `start` in the fewest of the `free` settings; None when
        there is none.
        """
        if start not in taken:
            return start
        return next((point for point in self._around(start, free, random) if point not in taken), None)

    def tried(self, trials: Iterable[tuple[dict[str, Any], bool]]) -> set[Point]:
        """Points that need no further trial, of parameters and whether that trial failed for no fault of
        theirs: such a point may be tried once more."""
        points: set[Point] = set()
        accidents: set[Point] = set()
        for params, accident in trials:
            point = self.point(params)
            if point is None:
                continue
            if accident and point not in accidents:
                accidents.add(point)
            else:
                points.add(point)
        return points

    def _around(self, start: Point, free: Collection[str], random: np.random.Generator) -> Iterator[Point]:
        places = random.permutation([i for i, name in enumerate(self.space) if name in free]).tolist()
        others = {
            i: [other for other in random.permutation(int(self._counts[i])).tolist() if other != start[i]]
            for i in places
        }
        for changed in range(1, len(places) + 1):
            for chosen in combinations(places, changed):
                for values in product(*(others[i] for i in chosen)):
                    swapped = dict(zip(chosen, values, strict=True))
                    yield tuple(swapped.get(i, place) for i, place in enumerate(start))
