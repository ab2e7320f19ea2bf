"""A search space as a grid of points: which are tried, and which untried one is nearest to another."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations, product

import numpy as np

from core.trial.spec import Value
from sweep.study.space import Space

Point = tuple[int, ...]  # for each setting of a space, in its order, the position of a value


class Grid:
    """The points of a space; only for a space whose `size` is finite."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._counts = [search.count for search in space.values()]

    @property
    def size(self) -> float:
        """How many points there are; infinity where a setting has infinitely many values."""
        return math.prod(self._counts)

    def point(self, params: Mapping[str, object]) -> Point | None:
        """The point of `params`; None where they lack a setting of the space or lie outside it."""
        if not self.space.keys() <= params.keys():
            return None
        positions = [search.position(params[name]) for name, search in self.space.items()]
        return None if None in positions else tuple(place for place in positions if place is not None)

    def params(self, point: Point) -> dict[str, Value]:
        """The value of each setting at `point`."""
        return {
            name: search.value_at(place)
            for (name, search), place in zip(self.space.items(), point, strict=True)
        }

    def nearest(
        self, start: Point, taken: Collection[Point], free: Collection[str], random: np.random.Generator
    ) -> Point | None:
        """The point not `taken` that differs from `start` in the fewest settings, only `free` ones; None if
        there is none. Ties are broken by `random`.
        """
        if start not in taken:
            return start
        return next((point for point in self._around(start, free, random) if point not in taken), None)

    def tried(self, trials: Iterable[tuple[Mapping[str, object], bool]]) -> set[Point]:
        """Points that need no further trial. `trials` has the parameters of each, and whether it failed for
        another reason than its parameters: such a point may be tried a second time."""
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

    def left(self, trials: Iterable[tuple[Mapping[str, object], bool]]) -> float:
        """How many points are untried, by `trials` as for `tried`."""
        return self.size - len(self.tried(trials)) if math.isfinite(self.size) else math.inf

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
