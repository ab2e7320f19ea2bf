import sqlite3
from dataclasses import replace

import optuna
import pytest

from core.trial.result import Result
from core.trial.spec import Data, Filters, Rendering, Scene, Story, Training, TrialSpec
from sweep.search.optuna_study import Store
from sweep.study.space import Choices, Range

SPACE = {"learning_rate": Range(low=1e-4, high=1e-2, log=True), "lora_rank": Choices(choices=(2, 4, 8))}


def open_store(path, startup_trials=3):
    return Store(path / "study.db", "s", SPACE, seed=0, startup_trials=startup_trials)


def spec(number):
    return TrialSpec(
        study="s",
        number=number,
        seed=0,
        backbone="tiny",
        precision="fp32",
        data=Data(source="d"),
        story=Story(title="t", scenes=(Scene(prompt="p", negative_prompt="", seed=1),)),
        train=Training(),
        render=Rendering(),
        filters=Filters(),
        gate=6.0,
    )


def complete(number, mean):
    return Result(
        state="complete", spec=spec(number), aesthetic=(mean,), aesthetic_mean=mean, passed_gate=mean >= 6
    )


def failed(number, reason):
    return Result(state="failed", spec=spec(number), reason=reason, message="m")


def fake_score(params):
    return 5 + 400 * params["learning_rate"] - 0.1 * params["lora_rank"]


def frozen(path):
    return optuna.load_study(storage=f"sqlite:///{path}/study.db", study_name="s").trials


def gate(trial):
    return next(value for key, value in trial.system_attrs.items() if key.endswith(":gate"))


def test_a_story_under_the_gate_is_infeasible_and_never_best(tmp_path):
    store = open_store(tmp_path)
    for mean in (5.9, 5.0):
        trial = store.ask()
        store.tell(trial, complete(trial.number, mean))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")
    with pytest.raises(ValueError, match=r"[Ff]easible"):
        _ = study.best_trial
    trial = store.ask()
    store.tell(trial, complete(trial.number, 6.1))
    assert optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s").best_trial.number == 2


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("nan_loss", "PRUNED"),
        ("no_images", "PRUNED"),
        ("cuda_oom", "PRUNED"),
        ("black_pictures", "PRUNED"),
        ("killed", "FAIL"),
        ("bug", "FAIL"),
    ],
)
def test_a_failure_is_told_by_its_class(tmp_path, reason, state):
    store = open_store(tmp_path)
    trial = store.ask()
    store.tell(trial, failed(0, reason))
    (told,) = frozen(tmp_path)
    assert (told.state.name, gate(told), told.user_attrs["reason"]) == (state, 20.0, reason)


def test_a_continued_study_samples_what_an_uninterrupted_one_would(tmp_path):
    def work(folder, stops):
        folder.mkdir()
        store, seen = open_store(folder), []
        for number in range(8):
            if number in stops:
                store = open_store(folder)
            trial = store.ask()
            store.tell(trial, complete(number, fake_score(trial.params)))
            seen.append(trial.params)
        return seen

    assert work(tmp_path / "whole", ()) == work(tmp_path / "stopped", (2, 5, 6))


def test_studies_with_neighbouring_seeds_share_no_draws(tmp_path):
    def draws(seed):
        (tmp_path / str(seed)).mkdir()
        store = Store(tmp_path / str(seed) / "study.db", "s", SPACE, seed=seed, startup_trials=9)
        return {store.ask().params["learning_rate"] for _ in range(4)}

    assert not draws(0) & draws(1)
    assert len(draws(2**32 - 1)) == 4


def test_hand_made_settings_come_first_and_once(tmp_path):
    store = open_store(tmp_path)
    for _ in range(2):
        store.enqueue([{"lora_rank": 8, "learning_rate": 1e-3}, {"lora_rank": 2}])
    assert store.ask().params == {"lora_rank": 8, "learning_rate": 1e-3}
    assert store.ask().params["lora_rank"] == 2
    assert len(frozen(tmp_path)) == 2


def test_an_exact_repeat_gets_the_stored_result(tmp_path):
    store = open_store(tmp_path)
    store.enqueue([{"lora_rank": 8, "learning_rate": 1e-3}])
    first = store.ask()
    store.tell(first, complete(0, 6.5))
    store._study.enqueue_trial(first.params)
    again = store.ask()
    assert store.same_params_as(again, since=1) is None
    repeated = store.same_params_as(again)
    assert repeated is not None
    store.tell(again, replace(complete(1, 6.5), same_as=repeated.number))
    told = frozen(tmp_path)[1]
    assert (told.value, gate(told), told.user_attrs["same_as"]) == (6.5, -0.5, 0)


@pytest.mark.parametrize(
    ("reason", "answered"), [("nan_loss", True), ("no_images", True), ("cuda_oom", False), ("hung", False)]
)
def test_a_repeat_of_settings_that_failed_is_told_so_unless_it_was_an_accident(tmp_path, reason, answered):
    store = open_store(tmp_path)
    first = store.ask()
    store.tell(first, failed(0, reason))
    store._study.enqueue_trial(first.params)
    assert (store.same_params_as(store.ask()) is not None) == answered


def test_an_adopted_trial_is_not_constrained_twice(tmp_path, recwarn):
    store = open_store(tmp_path)
    trial = store.ask()
    store._constrain(trial, -0.5)  # as far as a killed driver got
    store = open_store(tmp_path)
    (adopted,) = store.running()
    store.tell(adopted, complete(0, 6.5))
    assert gate(frozen(tmp_path)[0]) == -0.5
    assert not [w for w in recwarn if "already set" in str(w.message)]


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("asks", [1, 2, 6])
def test_an_ask_that_was_cut_short_is_finished_as_it_would_have_been(tmp_path, asks, kept):
    """Killed between two parameters of a hand-made trial, of a random one, and of one by TPE."""

    def work(folder):
        folder.mkdir()
        store = open_store(folder)
        store.enqueue([{"lora_rank": 8}])
        for number in range(asks - 1):
            trial = store.ask()
            store.tell(trial, complete(number, fake_score(trial.params)))
        return store, store.ask()

    whole = work(tmp_path / "whole")[1].params
    _, trial = work(tmp_path / "cut")
    # as if the process had died before it wrote them
    with sqlite3.connect(tmp_path / "cut" / "study.db") as db:
        for name in list(SPACE)[kept:]:
            db.execute(
                "DELETE FROM trial_params WHERE trial_id = ? AND param_name = ?", (trial._trial_id, name)
            )
    cut = open_store(tmp_path / "cut")
    cut.finish_asks()
    (adopted,) = cut.running()
    assert (adopted.number, adopted.params) == (asks - 1, whole)


def test_a_told_result_can_be_read_again(tmp_path):
    store = open_store(tmp_path)
    trial = store.ask()
    result = replace(complete(0, 6.5), retried=("hung",), lora_sha256="ab", timings_s={"train": 1.5})
    store.tell(trial, result)
    assert open_store(tmp_path).stored(frozen(tmp_path)[0], spec(0)) == result
