"""The Optuna study: asks for parameters, is told outcomes. The one place where an outcome becomes a trial's
state.
"""

import logging
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterable
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from core.files.fail_point import fail_point
from core.folders import shown_path
from core.trial.result import Result
from core.trial.spec import TrialSpec
from core.verdict import FAILED_BY_PARAMETERS, constraint
from sweep.failures import failure
from sweep.search.grid import Grid
from sweep.search.sampler import Distributions, Untried
from sweep.search.sqlite import TRY_S, Patience, StoreError
from sweep.study.errors import Mistake, StudyError, sentence
from sweep.study.space import Choices, Range, Space
from sweep.tracking.uri import sqlite_address

TOLD = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Our own marks, as user attributes: a hand-made setting of the study file's, and one that was taken out of it
# again.
HAND_MADE, WITHDRAWN = "hand_made", "withdrawn"


class Store:
    """One study in one SQLite file, with one driver.

    Others may queue trials meanwhile, as a notebook does with `study.enqueue_trial`; `allow` gives their
    values in the settings' own types, or raises Mistake.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        space: Space,
        *,
        seed: int,
        startup_trials: int,
        allow: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        """Raises StoreError; StudyError where the file holds another study."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._space, self._seed, self._startup_trials, self._allow = (
            distributions(space),
            seed,
            startup_trials,
            allow,
        )
        self._grid = Grid(space)
        self._patience = Patience()
        storage = _open(path, self._patience)
        _check_name(storage, path, name)
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )

    def wait_unless(self, stop_asked: Callable[[], object]) -> None:
        """From now on a file that somebody else has locked is waited for only until `stop_asked`: then
        KeyboardInterrupt.
        """
        self._patience.stop_asked = stop_asked

    def enqueue(self, first: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Queue hand-made settings to be tried before sampling; repeated calls add nothing -> those of an
        earlier call that are not among them any more and did not run yet: they are taken out again, and count
        nowhere."""
        wanted, withdrawn = list(first), []
        for trial in self._trials(TrialState.WAITING, TrialState.RUNNING):
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

    def claim(self, first: Iterable[dict[str, Any]]) -> None:
        """Mark what waits of an earlier `first`: versions that had no mark for it queued it too."""
        earlier = list(first)
        for trial in self._trials(TrialState.WAITING):
            if HAND_MADE not in trial.user_attrs and _queued(trial) in earlier:
                self._study._storage.set_trial_user_attr(trial._trial_id, HAND_MADE, True)

    def _withdraw(self, trial: FrozenTrial) -> None:
        """As a trial that ran, for Optuna has no other that is over."""
        storage = self._study._storage
        storage.set_trial_user_attr(trial._trial_id, WITHDRAWN, True)
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def ask(self, since: int = 0) -> Trial:
        """The next trial: one that is queued, else a sampled one, where there is one of a point untried by
        the trials from `since` on. A queued one may be `refused`.

        Optuna does not store the sampler's state: a fresh sampler seeded by the number of trials so far
        samples after a restart what an uninterrupted study would have sampled.
        """
        trials = self.trials()
        self._study.sampler = self._sampler(len(trials), trials[since:])
        trial = self._study.ask()
        frozen = self._frozen(trial)
        if _queued(frozen) is None:
            for name, distribution in self._space.items():
                # as Study.ask does, but not before it is known that nobody has queued it
                trial._suggest(name, distribution)
            return trial
        if not self.refused(trial):
            self._finish_asking(frozen)
        return Trial(self._study, trial._trial_id)

    def _sampler(self, trials: int, before: list[FrozenTrial]) -> optuna.samplers.BaseSampler:
        """Mixed, for a sum would give the next study seed the same draws one trial later."""
        seeds = np.random.SeedSequence((self._seed, trials))
        sampler = optuna.samplers.TPESampler(
            seed=int(seeds.generate_state(1)[0]), n_startup_trials=self._startup_trials
        )
        if isinf(self._grid.size):
            return sampler
        return Untried(sampler, self._grid, self._space, before, np.random.default_rng(seeds))

    def exhausted(self, since: int = 0) -> int | None:
        """How many points the space has, once trials from `since` on have tried every one of them and nothing
        is queued.
        """
        if isinf(self._grid.size) or self.queued():
            return None
        tried = self._grid.tried(
            (trial.params, trial.state == TrialState.FAIL) for trial in self.trials()[since:]
        )
        return int(self._grid.size) if len(tried) >= self._grid.size else None

    def running(self) -> list[Trial]:
        """Trials that were asked for and never told, by number."""
        return [Trial(self._study, frozen._trial_id) for frozen in self._trials(TrialState.RUNNING)]

    def finish_asks(self) -> None:
        """Sample what is missing where an ask was cut short."""
        for trial in self.running():
            if not self._space.keys() <= trial.params.keys() and not self.refused(trial):
                self._finish_asking(self._frozen(trial))

    def refused(self, trial: Trial) -> str | None:
        """Why the values that a trial was queued with cannot be tried."""
        queued = _queued(self._frozen(trial))
        if queued is None or self._space.keys() <= trial.params.keys():  # it was asked for when they could
            return None
        try:
            self._allow(queued)
        except Mistake as mistake:
            return sentence(mistake)
        return None

    def wanted(self, trial: Trial) -> dict[str, Any]:
        """What a trial was asked for or queued with, be it allowed or not."""
        return (_queued(self._frozen(trial)) or {}) | trial.params

    def queued(self) -> int:
        """How many trials wait to be asked for before any is sampled."""
        return len(self._trials(TrialState.WAITING))

    def enqueued(self) -> set[int]:
        """Hand-made settings: the baselines that samples are compared with."""
        return {trial.number for trial in self.trials() if _queued(trial) is not None}

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number, in whatever state."""
        return self._study.get_trials(deepcopy=False)

    def _finish_asking(self, frozen: FrozenTrial) -> None:
        """Sample what is missing as the undisturbed study would have: same trials before it, same seed."""
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

    def told(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials(*TOLD) if WITHDRAWN not in trial.user_attrs]

    def after_told(self) -> int:
        """The number after the last trial that was told."""
        return max((trial.number for trial in self.told()), default=-1) + 1

    def twin(self, trial: Trial, since: int = 0) -> FrozenTrial | None:
        """An earlier trial, `since` or later, with exactly these parameters, whose outcome a repeat would
        have too.
        """
        return next(
            (
                other
                for other in self._trials(TrialState.COMPLETE, TrialState.PRUNED)
                if other.number >= since
                and other.params == trial.params
                # memory may have been another program's
                and not failure(other.user_attrs.get("reason")).retried
            ),
            None,
        )

    def tell(self, trial: Trial, result: Result) -> None:
        """Turn an outcome into a state; the gate's constraint always first, for a trial without it counts as
        feasible.
        """
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
        self._study.tell(
            trial, state=TrialState.PRUNED if failure(result.reason).by_parameters else TrialState.FAIL
        )

    def stored(self, frozen: FrozenTrial, spec: TrialSpec) -> Result | None:
        """The copy of a told result."""
        values = frozen.user_attrs.get("result")
        return Result.from_json(values | {"spec": spec.to_json()}) if values else None

    def _constrain(self, trial: Trial, value: float) -> None:
        if "gate_constraint" not in trial.user_attrs:  # an adopted trial may have got this far before
            trial.set_constraint("gate", value)
            # dashboards show user attributes only (optuna-dashboard 0.21)
            trial.set_user_attr("gate_constraint", value)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study._storage.get_trial(trial._trial_id)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


def distributions(space: Space) -> Distributions:
    """A space as Optuna has it, by setting."""
    return {name: _distribution(search) for name, search in space.items()}


def _distribution(search: Choices | Range) -> BaseDistribution:
    if isinstance(search, Choices):
        return CategoricalDistribution(search.choices)
    if isinstance(search.low, int):
        return IntDistribution(search.low, search.high, log=search.log, step=search.distance)
    return FloatDistribution(search.low, search.high, log=search.log, step=search.step)


def check_held(path: Path, name: str) -> None:
    """Raises the StoreError or StudyError that a start would raise for what the file holds; only reads it."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        storage = _open(path, None)
        try:
            _check_name(storage, path, name)
        finally:
            storage.engine.dispose()
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        # locked, or left half written by a driver that died: one that may write waits, mends it, or says why
        # it cannot
        pass


def _check_name(storage: optuna.storages.RDBStorage, path: Path, name: str) -> None:
    held = optuna.get_all_study_names(storage)
    if held and name not in held:
        raise StudyError(
            f"{shown_path(path)}: it holds study {held[0]}, and a study that was started cannot be renamed or "
            f"copied under another name ({name}): call study and folder {held[0]} again, or move "
            f"{shown_path(path.parent)} away to start study {name} from nothing"
        )


def _open(path: Path, patience: Patience | None) -> optuna.storages.RDBStorage:
    """Without patience only to read. Raises StoreError where the file is another Optuna's."""
    address = sqlite_address(path)
    read_only = {
        "creator": lambda: sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=TRY_S, uri=True)
    }
    try:
        return optuna.storages.RDBStorage(
            address,
            skip_table_creation=patience is None,
            engine_kwargs=read_only if patience is None else {"connect_args": patience.connect_args},
        )
    # what Optuna 5.0 raises where its tables are not as its own version makes them
    except RuntimeError as error:
        older = "storage upgrade" in str(error)
        command = shlex.join(
            [str(Path(sys.executable).with_name("optuna")), "storage", "upgrade", "--storage", address]
        )
        raise StoreError(
            f"{shown_path(path)}: its tables are those of {'an older' if older else 'a newer'} Optuna than the "
            f"installed {optuna.__version__}; "
            f"{f'copy it, then {command}' if older else 'go on with the installation that made it'}"
        ) from None


def _queued(trial: FrozenTrial) -> dict[str, Any] | None:
    """The values that a trial was queued with, by us or from elsewhere; None where it was not."""
    return trial.system_attrs.get("fixed_params")
