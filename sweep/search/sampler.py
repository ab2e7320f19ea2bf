"""An Optuna sampler for a space with a finite number of points, which prefers those that are untried."""

from collections.abc import Collection
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from sweep.search.grid import Grid

Distributions = dict[str, BaseDistribution]


class Untried(TPESampler):
    """Samples as Optuna's TPE does, but replaces a point that was tried `before` by the nearest untried one.

    Once every point is tried it prefers those whose trial failed for another reason than its parameters.
    """

    def __init__(
        self,
        grid: Grid,
        distributions: Distributions,
        before: Collection[FrozenTrial],
        random: np.random.Generator,
        *,
        seed: int,
        n_startup_trials: int,
    ) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup_trials)
        asked = {point for trial in before if (point := grid.point(trial.params)) is not None}
        self._grid, self._distributions, self._random = grid, distributions, random
        # sets of points to avoid: all that were asked for, else those that need no further trial
        self._taken = asked, grid.tried((trial.params, trial.state == TrialState.FAIL) for trial in before)

    @override
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        """The whole space: all settings are sampled together, by `sample_relative`."""
        return self._distributions

    @override
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Distributions
    ) -> dict[str, Any]:
        """A value for each setting: those of an untried point, as long as there is one."""
        drawn = super().sample_relative(study, trial, super().infer_relative_search_space(study, trial))
        for name, search in self._grid.space.items():
            # during startup, or after a range has changed
            if name not in drawn or not search.allows(drawn[name]):
                drawn[name] = self.sample_independent(study, trial, name, self._distributions[name])
        queued = trial.system_attrs.get("fixed_params", {})
        start, free = self._grid.point(drawn | queued), self._grid.space.keys() - queued.keys()
        if start is None:
            return drawn
        found = (self._grid.nearest(start, taken, free, self._random) for taken in self._taken)
        return next((self._grid.params(point) for point in found if point), drawn)
