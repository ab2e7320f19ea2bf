"""Spaces with a finite number of points are tried point by point, each once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.files.files import write_json, write_text
from core.folders import Runs
from sweep.commands.status import study_status
from sweep.search.grid import Grid
from sweep.search.optuna_study import Store
from sweep.study.space import Choices, Range
from sweep.study.study import load_study
from tests.sweep.search.test_optuna_study import SPACE, complete, failed

SMALL = {"lora_rank": Choices(choices=(2, 4, 8)), "epochs": Range(low=1, high=4)}
SETTINGS = st.one_of(
    st.lists(st.sampled_from([1, 2, 4, None, "phash"]), min_size=1, max_size=3, unique=True).map(
        lambda choices: Choices(choices=tuple(choices))
    ),
    st.builds(
        lambda low, more, step: Range(low=low, high=low + more * step, step=step),
        st.integers(-9, 99),
        st.integers(0, 3),
        st.integers(1, 64),
    ),
    st.builds(
        lambda low, more: Range(low=low, high=low + more, log=True), st.integers(1, 99), st.integers(0, 2)
    ),
    st.builds(
        lambda low, more, step: Range(low=low, high=round(low + more * step, 9), step=step),
        st.sampled_from([0.0, 0.1, 1e-4]),
        st.integers(0, 3),
        st.sampled_from([0.1, 0.3, 1e-5]),
    ),
    st.floats(0.1, 9).map(lambda value: Range(low=value, high=value)),
)


def open_store(folder: Path, space: Any = SMALL, seed: int = 0) -> Store:
    return Store(folder / "study.db", "s", space, seed=seed, startup_trials=3)


def work(store: Store, trials: int) -> list[dict[str, Any]]:
    seen = []
    for _ in range(trials):
        trial = store.ask()
        store.tell(trial, complete(trial.number, 5 + 0.1 * (trial.number % 7)))
        seen.append(trial.params)
    return seen


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    space=st.dictionaries(st.sampled_from("abc"), SETTINGS, min_size=1, max_size=2), seed=st.integers(0, 99)
)
def test_as_many_trials_as_points_try_every_point(tmp_path_factory, space: dict[str, Any], seed: int) -> None:
    store, size = open_store(tmp_path_factory.mktemp("small"), space, seed), Grid(space).size
    seen = []
    while not store.exhausted():
        seen += work(store, 1)
        assert len(seen) <= size
    assert len(seen) == size
    assert (
        len({tuple(space[name].position(value) for name, value in params.items()) for params in seen}) == size
    )


def test_a_continued_study_goes_on_among_the_untried_as_an_uninterrupted_one_would(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = work(open_store(tmp_path / "whole"), 12)
    assert len({tuple(params.items()) for params in whole}) == 12
    assert [
        params for trials in (5, 1, 6) for params in work(open_store(tmp_path / "stopped"), trials)
    ] == whole


def test_a_point_that_failed_by_accident_comes_again_last_and_once(tmp_path: Path) -> None:
    store = open_store(tmp_path, {"lora_rank": Choices(choices=(2, 4, 8))})
    first = store.ask()
    store.tell(first, failed(first.number, "device_lost"))
    others = work(store, 2)
    assert first.params not in others
    assert store.exhausted() is None
    again = store.ask()
    assert again.params == first.params
    store.tell(again, failed(again.number, "device_lost"))
    assert store.exhausted() == 3


def test_status_and_run_count_the_same_points_as_tried(tmp_path: Path) -> None:
    study = load_study("demo").model_copy(
        update={"first": (), "space": {"lora_rank": Choices(choices=(2, 4))}}
    )
    folder, store = Runs(tmp_path).study("s"), open_store(tmp_path, study.space)
    folder.path.mkdir()
    write_text(folder.frozen, study.to_yaml())
    for left in (2, 1, 1, 0):  # the second rank fails twice
        verdict = folder.verdict()
        assert (study_status(folder, verdict).target - len(verdict.results), store.exhausted() is None) == (
            left,
            bool(left),
        )
        if left:
            trial = store.ask()
            result = failed(trial.number, "device_lost") if trial.number else complete(0, 5.0)
            result = replace(result, spec=study.spec(trial.number, trial.params))
            store.tell(trial, result)
            folder.trial(trial.number).path.mkdir(parents=True)
            write_json(folder.trial(trial.number).result, result)


def test_after_an_accepted_change_every_point_is_untried(tmp_path: Path) -> None:
    store = open_store(tmp_path, {"lora_rank": Choices(choices=(2, 4))})
    work(store, 2)
    assert (store.exhausted(), store.exhausted(since=2)) == (2, None)
    seen = [store.ask(since=2).params["lora_rank"] for _ in range(2)]
    assert sorted(seen) == [2, 4]


def test_what_a_queued_trial_leaves_open_is_untried_too(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(4):
        store._study.enqueue_trial({"lora_rank": 4})
    assert store.exhausted() is None
    assert len({tuple(params.items()) for params in work(store, 4)}) == 4


def test_a_space_of_any_number_of_points_is_never_exhausted(tmp_path: Path) -> None:
    store = open_store(tmp_path, SPACE)
    work(store, 5)
    assert store.exhausted() is None


@pytest.mark.parametrize("reason", ["no_images", "nan_loss"])
def test_points_that_cannot_work_are_not_tried_again(tmp_path: Path, reason: str) -> None:
    store = open_store(tmp_path, {"lora_rank": Choices(choices=(2, 4))})
    for _ in range(2):
        trial = store.ask()
        store.tell(trial, replace(failed(trial.number, reason)))
    assert store.exhausted() == 2
