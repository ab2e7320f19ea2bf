"""The Optuna study of a sweep: asks for parameters and tells results. The only place where a result becomes
an Optuna state.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import isinf
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from core.files.fail_point import fail_point
from core.files.files import from_json
from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from core.verdict import FAILED_CONSTRAINT, constraint
from sweep.failures import failure
from sweep.search.grid import Grid
from sweep.search.sampler import Distributions, Untried
from sweep.search.sqlite import BusyRetry
from sweep.search.storage import check_name, open_storage
from sweep.study.errors import Mistake, sentence
from sweep.study.space import Choices, Range, Space

Params = dict[str, Value]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# User attributes of trials: queued from `first` of the study file; taken out of `first` again before it ran.
HAND_MADE, WITHDRAWN = "hand_made", "withdrawn"


class Store:
    """One study in one SQLite file, with one driver.

    Other programs may queue trials meanwhile, as a notebook does with `study.enqueue_trial`; `allow` returns
    their values in the settings' own types, or raises Mistake.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        space: Space,
        *,
        seed: int,
        startup_trials: int,
        allow: Callable[[Params], Params] = dict,
    ) -> None:
        """Raises StoreError; StudyError where the file holds another study."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._space, self._allow = distributions(space), allow
        self._seed, self._startup_trials = seed, startup_trials
        self._grid = Grid(space)
        self._busy_retry = BusyRetry()
        storage = open_storage(path, self._busy_retry)
        check_name(storage, path, name)
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )

    def wait_unless(self, stop_asked: Callable[[], object]) -> None:
        """From now on, waiting for a file that another process has locked ends with KeyboardInterrupt once
        `stop_asked` returns true.
        """
        self._busy_retry.stop_asked = stop_asked

    def enqueue(self, first: Iterable[Params]) -> list[Params]:
        """Queue the hand-made settings `first`, to be tried before any sampling; those that are known already
        are not queued again. Settings of an earlier call that are missing now and have not run are withdrawn.

        Returns the withdrawn settings.
        """
        wanted, withdrawn = list(first), []
        for trial in self.trials(TrialState.WAITING, TrialState.RUNNING):
            waits = trial.state == TrialState.WAITING
            if WITHDRAWN in trial.user_attrs or (
                waits and HAND_MADE in trial.user_attrs and _queued(trial) not in wanted
            ):
                self._withdraw(trial)
                withdrawn.append(_queued(trial) or {})
        known = [
            _queued(trial) or trial.params for trial in self.trials() if WITHDRAWN not in trial.user_attrs
        ]
        for params in wanted:
            if params not in known:
                self._study.enqueue_trial(params, user_attrs={HAND_MADE: True})
                known.append(params)
        return withdrawn

    def claim(self, first: Iterable[Params]) -> None:
        """Mark queued trials of an earlier `first` as hand-made: older versions queued them unmarked."""
        earlier = list(first)
        for trial in self.trials(TrialState.WAITING):
            if HAND_MADE not in trial.user_attrs and _queued(trial) in earlier:
                self._study._storage.set_trial_user_attr(trial._trial_id, HAND_MADE, True)

    def _withdraw(self, trial: FrozenTrial) -> None:
        """Mark the trial as withdrawn and end it as failed: Optuna cannot delete a queued trial."""
        storage = self._study._storage
        storage.set_trial_user_attr(trial._trial_id, WITHDRAWN, True)
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def ask(self, since: int = 0) -> Trial:
        """The next trial: a queued one, which may not be allowed (`why_not_allowed`), else a sampled one, if
        possible of a point that no trial from `since` on has tried.

        Optuna does not store the sampler's state. Therefore each call makes a new sampler, seeded by the
        number of trials so far: after a restart it samples what an uninterrupted study would have sampled.
        """
        trials = self.trials()
        self._study.sampler = self._sampler(len(trials), trials[since:])
        trial = self._study.ask()
        frozen = self._frozen(trial)
        if _queued(frozen) is None:
            for name, distribution in self._space.items():
                # as Study.ask does, but only now that the trial is known to be no queued one
                trial._suggest(name, distribution)
            return trial
        if not self.why_not_allowed(trial):
            self._finish_asking(frozen)
        return Trial(self._study, trial._trial_id)

    def _sampler(self, trials: int, before: list[FrozenTrial]) -> TPESampler:
        """A sampler seeded by a mix of study seed and number of trials: with their sum, the next study seed
        would sample the same one trial later.
        """
        seeds = np.random.SeedSequence((self._seed, trials))
        seed, startup = int(seeds.generate_state(1)[0]), self._startup_trials
        if isinf(self._grid.size):
            return TPESampler(seed=seed, n_startup_trials=startup)
        random = np.random.default_rng(seeds)
        return Untried(self._grid, self._space, before, random, seed=seed, n_startup_trials=startup)

    def exhausted(self, since: int = 0) -> int | None:
        """How many points the space has, if the trials from `since` on have tried all of them and none is
        queued; else None.
        """
        if self.queued():
            return None
        trials = ((trial.params, trial.state == TrialState.FAIL) for trial in self.trials()[since:])
        return None if self._grid.left(trials) else int(self._grid.size)

    def running(self) -> list[Trial]:
        """Trials that were asked for and not finished yet, by number."""
        return [Trial(self._study, frozen._trial_id) for frozen in self.trials(TrialState.RUNNING)]

    def finish_asks(self) -> None:
        """Sample the missing parameters of trials whose `ask` was interrupted."""
        for trial in self.running():
            if not self._space.keys() <= trial.params.keys() and not self.why_not_allowed(trial):
                self._finish_asking(self._frozen(trial))

    def why_not_allowed(self, trial: Trial) -> str | None:
        """Why the values that a trial was queued with are not allowed; None if they are."""
        queued = _queued(self._frozen(trial))
        if queued is None or self._space.keys() <= trial.params.keys():  # allowed when it was asked for
            return None
        try:
            self._allow(queued)
        except Mistake as mistake:
            return sentence(mistake)
        return None

    def wanted(self, trial: Trial) -> Params:
        """The parameters that a trial was sampled or queued with, allowed or not."""
        return (_queued(self._frozen(trial)) or {}) | trial.params

    def queued(self) -> int:
        """How many trials are queued."""
        return len(self.trials(TrialState.WAITING))

    def enqueued(self) -> set[int]:
        """Numbers of the trials that were queued by hand, in `first` or from a notebook."""
        return {trial.number for trial in self.trials() if _queued(trial) is not None}

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in any of these states, by default in every one, by number."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _finish_asking(self, frozen: FrozenTrial) -> None:
        """Sample missing parameters as an uninterrupted study would have: same earlier trials, same seed."""
        trials, queued = self.trials(), _queued(frozen)
        asked = [trial for trial in trials[: frozen.number] if trial.state != TrialState.WAITING]
        before = optuna.create_study(
            direction="maximize", sampler=self._sampler(len(trials) - (queued is None), asked)
        )
        before.add_trials(asked)
        if queued is not None:
            before.enqueue_trial(self._allow(queued))
        for name, value in before.ask(self._space).params.items():
            if name not in frozen.params:
                internal = self._space[name].to_internal_repr(value)
                self._study._storage.set_trial_param(frozen._trial_id, name, internal, self._space[name])

    def finished(self) -> list[FrozenTrial]:
        """The finished trials, by number, without those that were withdrawn."""
        return [trial for trial in self.trials(*FINISHED) if WITHDRAWN not in trial.user_attrs]

    def after_finished(self) -> int:
        """The number after that of the last finished trial."""
        return max((trial.number for trial in self.finished()), default=-1) + 1

    def same_params_as(self, trial: Trial, since: int = 0) -> FrozenTrial | None:
        """A finished trial, from number `since` on, with exactly these parameters, whose outcome a repeat
        would have too; None if there is none.
        """
        return next(
            (
                other
                for other in self.trials(TrialState.COMPLETE, TrialState.PRUNED)
                if other.number >= since
                and other.params == trial.params
                # such a failure may not repeat, as when another program took the memory
                and not failure(other.user_attrs.get("reason")).retried
            ),
            None,
        )

    def tell(self, trial: Trial, result: Result) -> None:
        """Store a result and finish the trial in Optuna. The gate's constraint is stored first: Optuna takes
        a trial without it as feasible.
        """
        stored = {name: value for name, value in asdict(result).items() if name != "spec"}
        trial.set_user_attr("result", stored)  # a copy, should result.json be lost
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
        self._constrain(trial, FAILED_CONSTRAINT)
        # PRUNED teaches the sampler to stay away; FAIL says nothing about the parameters.
        self._study.tell(
            trial, state=TrialState.PRUNED if failure(result.reason).by_parameters else TrialState.FAIL
        )

    def stored(self, frozen: FrozenTrial, spec: TrialSpec) -> Result | None:
        """The copy of a finished trial's result in study.db, or None."""
        values = frozen.user_attrs.get("result")
        return from_json(values | {"spec": spec}, Result) if values else None

    def _constrain(self, trial: Trial, value: float) -> None:
        if "gate_constraint" not in trial.user_attrs:  # set already if an earlier driver was killed here
            trial.set_constraint("gate", value)
            # again as a user attribute: optuna-dashboard 0.21 shows only those
            trial.set_user_attr("gate_constraint", value)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study._storage.get_trial(trial._trial_id)


def distributions(space: Space) -> Distributions:
    """A space as Optuna's distributions, by setting."""
    return {name: _distribution(search) for name, search in space.items()}


def _distribution(search: Choices | Range) -> BaseDistribution:
    if isinstance(search, Choices):
        return CategoricalDistribution(search.choices)
    if isinstance(search.low, int):
        return IntDistribution(search.low, search.high, log=search.log, step=search.step or 1)
    return FloatDistribution(search.low, search.high, log=search.log, step=search.step)


def _queued(trial: FrozenTrial) -> Params | None:
    """The values that a trial was queued with, by us or by another program; None if it was sampled."""
    return trial.system_attrs.get("fixed_params")
