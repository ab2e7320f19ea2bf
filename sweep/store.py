"""The Optuna study: asks for parameters, is told outcomes. The one place where an outcome becomes a trial's state."""
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from core.fail_point import fail_point
from core.gate import FAILED_BY_PARAMETERS, PARAMETER_FAILURES, constraint
from core.settings import Result, TrialSpec
from sweep.address import sqlite_address
from sweep.busy_sqlite import Patience

Distributions = dict[str, optuna.distributions.BaseDistribution]
TOLD = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Store:
    """One study in one SQLite file, with one driver."""

    def __init__(self, path: Path, name: str, space: Distributions, *, seed: int, startup_trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._space, self._seed, self._startup_trials = space, seed, startup_trials
        self._patience = Patience()
        storage = optuna.storages.RDBStorage(sqlite_address(path), engine_kwargs={"connect_args": self._patience.connect_args})
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)

    def wait_unless(self, stop_asked: Callable[[], object]) -> None:
        """From now on a file that somebody else has locked is waited for only until `stop_asked`: then KeyboardInterrupt."""
        self._patience.stop_asked = stop_asked

    def enqueue(self, first: Iterable[dict[str, Any]]) -> None:
        """Queue hand-made settings to be tried before sampling; repeated calls add nothing."""
        for params in first:
            self._study.enqueue_trial(params, skip_if_exists=True)

    def ask(self) -> Trial:
        """The next trial.

        Optuna does not store the sampler's state: a fresh sampler seeded by the number of trials so far samples
        after a restart what an uninterrupted study would have sampled.
        """
        self._study.sampler = self._sampler(len(self.trials()))
        return self._study.ask(self._space)

    def _sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        """Mixed, for a sum would give the next study seed the same draws one trial later."""
        seed = int(np.random.SeedSequence((self._seed, trials)).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup_trials)

    def running(self) -> list[Trial]:
        """Trials that were asked for and never told, by number; an ask that was cut short is finished first."""
        found = self._trials(TrialState.RUNNING)
        for frozen in found:
            if not self._space.keys() <= frozen.params.keys():
                self._finish_asking(frozen)
        return [Trial(self._study, frozen._trial_id) for frozen in found]

    def enqueued(self) -> set[int]:
        """Hand-made settings: the baselines that samples are compared with."""
        return {trial.number for trial in self.trials() if "fixed_params" in trial.system_attrs}

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number, in whatever state."""
        return self._study.get_trials(deepcopy=False)

    def _finish_asking(self, frozen: FrozenTrial) -> None:
        """Sample what is missing as the undisturbed study would have: same trials before it, same seed."""
        trials = self.trials()
        enqueued = frozen.system_attrs.get("fixed_params")
        before = optuna.create_study(direction="maximize", sampler=self._sampler(len(trials) - (enqueued is None)))
        before.add_trials(trials[:frozen.number])
        if enqueued is not None:
            before.enqueue_trial(enqueued)
        for name, value in before.ask(self._space).params.items():
            if name not in frozen.params:
                internal = self._space[name].to_internal_repr(value)
                self._study._storage.set_trial_param(frozen._trial_id, name, internal, self._space[name])

    def told(self) -> list[FrozenTrial]:
        return self._trials(*TOLD)

    def after_told(self) -> int:
        """The number after the last trial that was told."""
        return max((trial.number for trial in self.told()), default=-1) + 1

    def twin(self, trial: Trial, since: int = 0) -> FrozenTrial | None:
        """An earlier trial, `since` or later, with exactly these parameters, whose outcome a repeat would have too."""
        return next((other for other in self._trials(TrialState.COMPLETE, TrialState.PRUNED)
                     if other.number >= since and other.params == trial.params
                     and other.user_attrs.get("reason") != "cuda_oom"), None)  # the memory may have been another program's

    def tell(self, trial: Trial, result: Result) -> None:
        """Turn an outcome into a state; the gate's constraint always first, for a trial without it counts as feasible."""
        stored = {name: value for name, value in result.to_json().items() if name != "spec"}
        trial.set_user_attr("result", stored)  # should result.json ever be lost
        fail_point("constrain")
        if result.same_as is not None:
            trial.set_user_attr("same_as", result.same_as)
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

    def stored(self, frozen: FrozenTrial, spec: TrialSpec) -> Result | None:
        """The copy of a told result."""
        values = frozen.user_attrs.get("result")
        return Result.from_json(values | {"spec": spec.to_json()}) if values else None

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
