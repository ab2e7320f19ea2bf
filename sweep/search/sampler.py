"""The sampler of a space whose points can be counted: it prefers those that are untried."""

from collections.abc import Collection
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sweep.search.grid import Grid

Distributions = dict[str, BaseDistribution]


class Untried(BaseSampler):
    """Samples as `inner` does; in place of a point that is known already it takes the untried one most like
    it.
    """

    def __init__(
        self,
        inner: BaseSampler,
        grid: Grid,
        distributions: Distributions,
        before: Collection[FrozenTrial],
        random: np.random.Generator,
    ) -> None:
        asked = {point for trial in before if (point := grid.point(trial.params)) is not None}
        self._inner, self._grid, self._distributions, self._random = inner, grid, distributions, random
        # accidents come last
        self._taken = asked, grid.tried((trial.params, trial.state == TrialState.FAIL) for trial in before)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Distributions
    ) -> dict[str, Any]:
        related = self._inner.infer_relative_search_space(study, trial)
        drawn = self._inner.sample_relative(study, trial, related)
        for name, search in self._grid.space.items():
            if name not in drawn or not search.allows(drawn[name]):  # startup, or a range that changed
                drawn[name] = self._inner.sample_independent(study, trial, name, self._distributions[name])
        queued = trial.system_attrs.get("fixed_params", {})
        start, free = self._grid.point(drawn | queued), self._grid.space.keys() - queued.keys()
        if start is None:
            return drawn
        found = (self._grid.nearest(start, taken, free, self._random) for taken in self._taken)
        return next((self._grid.params(point) for point in found if point), drawn)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)
