"""A space of countable points: which of them are untried, and the sampler that prefers those."""
import math
from collections.abc import Collection, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

Space = dict[str, BaseDistribution]
Point = tuple[int, ...]  # positions along the settings of a space, in its order


class Grid:
    """The points of a space without a setting whose values cannot be counted."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._counts = [_count(distribution) for distribution in space.values()]

    @property
    def size(self) -> float:
        """How many points there are; infinity where some setting has any number of values."""
        return math.prod(self._counts)

    def point(self, params: dict[str, Any]) -> Point | None:
        """None where `params` lack a setting of the space or lie beside it."""
        if not self.space.keys() <= params.keys():
            return None
        positions = [position(distribution, params[name]) for name, distribution in self.space.items()]
        return None if None in positions else tuple(place for place in positions if place is not None)

    def params(self, point: Point) -> dict[str, Any]:
        return {name: _value(distribution, place)
                for (name, distribution), place in zip(self.space.items(), point, strict=True)}

    def nearest(self, start: Point, taken: Collection[Point], free: Collection[str], random: np.random.Generator) -> Point | None:
        """The point not `taken` that differs from `start` in the fewest of the `free` settings; None when there is none."""
        if start not in taken:
            return start
        return next((point for point in self._around(start, free, random) if point not in taken), None)

    def _around(self, start: Point, free: Collection[str], random: np.random.Generator) -> Iterator[Point]:
        places = random.permutation([i for i, name in enumerate(self.space) if name in free]).tolist()
        others = {i: [other for other in random.permutation(int(self._counts[i])).tolist() if other != start[i]] for i in places}
        for changed in range(1, len(places) + 1):
            for chosen in combinations(places, changed):
                for values in product(*(others[i] for i in chosen)):
                    swapped = dict(zip(chosen, values, strict=True))
                    yield tuple(swapped.get(i, place) for i, place in enumerate(start))


def tried(grid: Grid, trials: Collection[FrozenTrial]) -> set[Point]:
    """Points that need no further trial; what failed for no fault of its own may be tried once more."""
    points: set[Point] = set()
    accidents: set[Point] = set()
    for trial in trials:
        point = grid.point(trial.params)
        if point is None:
            continue
        if trial.state == TrialState.FAIL and point not in accidents:
            accidents.add(point)
        else:
            points.add(point)
    return points


class Untried(BaseSampler):
    """Samples as `inner` does; in place of a point that is known already it takes the untried one most like it."""

    def __init__(self, inner: BaseSampler, grid: Grid, before: Collection[FrozenTrial], random: np.random.Generator) -> None:
        asked = {point for trial in before if (point := grid.point(trial.params)) is not None}
        self._inner, self._grid, self._random = inner, grid, random
        self._taken = asked, tried(grid, before)  # accidents come last

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        return self._grid.space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        related = self._inner.infer_relative_search_space(study, trial)
        drawn = self._inner.sample_relative(study, trial, related)
        for name, distribution in self._grid.space.items():
            if name not in drawn or position(distribution, drawn[name]) is None:  # startup, or a range that changed
                drawn[name] = self._inner.sample_independent(study, trial, name, distribution)
        queued = trial.system_attrs.get("fixed_params", {})
        start, free = self._grid.point(drawn | queued), self._grid.space.keys() - queued.keys()
        if start is None:
            return drawn
        found = (self._grid.nearest(start, taken, free, self._random) for taken in self._taken)
        return next((self._grid.params(point) for point in found if point), drawn)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)


def position(distribution: BaseDistribution, value: Any) -> int | None:
    """Where a value stands among those of its setting, from 0; None where it is none of them."""
    try:
        internal = distribution.to_internal_repr(value)
    except (ValueError, TypeError):
        return None
    if not distribution._contains(internal):
        return None
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return round((internal - distribution.low) / distribution.step) if distribution.step else 0


def _count(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    if distribution.single():
        return 1
    return round((distribution.high - distribution.low) / distribution.step) + 1 if distribution.step else math.inf


def _value(distribution: BaseDistribution, place: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[place]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return distribution.low if place == 0 else min(distribution.high, distribution.low + place * (distribution.step or 0))
