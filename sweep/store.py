"""The Optuna study: asks for parameters, is told outcomes. The one place where an outcome becomes a trial's state."""
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from core.gate import FAILED_BY_PARAMETERS, PARAMETER_FAILURES, constraint
from core.settings import Result

Distributions = dict[str, optuna.distributions.BaseDistribution]
TOLD = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Store:
    """One study in one SQLite file, with one driver."""

    def __init__(self, path: Path, name: str, space: Distributions, *, seed: int, startup_trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._space, self._seed, self._startup_trials = space, seed, startup_trials
        self._study = optuna.create_study(storage=f"sqlite:///{path}", study_name=name, direction="maximize",
                                          load_if_exists=True)

    def enqueue(self, first: Iterable[dict[str, Any]]) -> None:
        """Queue hand-made settings to be tried before sampling; repeated calls add nothing."""
        for params in first:
            self._study.enqueue_trial(params, skip_if_exists=True)

    def ask(self) -> Trial:
        """The next trial.

        Optuna does not store the sampler's state: a fresh sampler seeded by the number of trials so far samples
        after a restart what an uninterrupted study would have sampled.
        """
        self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        return self._study.ask(self._space)

    def running(self) -> list[Trial]:
        """Trials that were asked for and never told, by number."""
        return [Trial(self._study, frozen._trial_id) for frozen in self._trials(TrialState.RUNNING)]

    def ask_again(self, trial: Trial) -> Trial:
        """A running trial that starts again, with a value for each searched setting.

        It lacks some where a killed driver died while asking, or where they are searched only since then.
        """
        self._study.sampler = self._sampler(trial.number)
        again = Trial(self._study, trial._trial_id)
        for name, distribution in self._space.items():
            again._suggest(name, distribution)  # what Study.ask does (optuna 5.0); a value that is there stays
        return again

    def after_told(self) -> int:
        """The number after the last trial that was told."""
        return max((trial.number for trial in self.told()), default=-1) + 1

    def told(self) -> list[FrozenTrial]:
        return self._trials(*TOLD)

    def twin(self, trial: Trial, since: int = 0) -> FrozenTrial | None:
        """An earlier complete trial, `since` or later, with exactly these parameters."""
        return next((other for other in self._trials(TrialState.COMPLETE)
                     if other.number >= since and other.params == trial.params), None)

    def tell(self, trial: Trial, result: Result) -> None:
        """Turn an outcome into a state; the gate's constraint always first, for a trial without it counts as feasible."""
        if result.state == "complete":
            assert result.aesthetic_mean is not None
            self._constrain(trial, constraint(result.aesthetic_mean, result.spec.gate))
            self._study.tell(trial, result.aesthetic_mean)
            return
        trial.set_user_attr("reason", result.reason)
        trial.set_user_attr("message", result.message)
        self._constrain(trial, FAILED_BY_PARAMETERS)
        # PRUNED teaches the sampler to stay away; FAIL says nothing about the parameters.
        by_parameters = result.reason in PARAMETER_FAILURES
        self._study.tell(trial, state=TrialState.PRUNED if by_parameters else TrialState.FAIL)

    def tell_twin(self, trial: Trial, twin: FrozenTrial) -> None:
        """Answer an exact repeat with the stored result."""
        trial.set_user_attr("same_as", twin.number)
        self._constrain(trial, twin.user_attrs["gate_constraint"])
        self._study.tell(trial, twin.value)

    def _sampler(self, trials: int) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(seed=self._seed + trials, n_startup_trials=self._startup_trials)

    def _constrain(self, trial: Trial, value: float) -> None:
        if "gate_constraint" not in trial.user_attrs:  # an adopted trial may have got this far before
            trial.set_constraint("gate", value)
            trial.set_user_attr("gate_constraint", value)  # dashboards show user attributes only (optuna-dashboard 0.21)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


def describe(params: dict[str, Any]) -> str:
    """Sampled parameters on one line: `lora_rank 8, learning_rate 0.0021`."""
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {json.dumps(value).strip(chr(34))}"
                     for name, value in params.items())
