"""Trials that somebody else queued, as a notebook does with `study.enqueue_trial`, and a study.db that is
another's.
"""

import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweep.search.optuna_study import Store
from sweep.search.sqlite import StoreError
from sweep.search.storage import check_held
from sweep.study.errors import StudyError
from sweep.study.study import load_study
from sweep.tracking.uri import sqlite_address
from tests.sweep.search.test_optuna_study import complete

OPENED: list[Callable[[Path, str], object]] = [  # by a start, and before it
    lambda folder, name: open_store(folder, name),
    lambda folder, name: check_held(folder / "study.db", name),
]

DEMO = load_study("demo")
GOOD = {"lora_rank": 8, "learning_rate": 1e-3}


def open_store(folder: Path, name: str = "demo") -> Store:
    return Store(folder / "study.db", name, DEMO.space, seed=0, startup_trials=9, allow=DEMO.allowed)


def notebook(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name="demo")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lora_rank": 3}, "lora_rank is 3, but space.lora_rank does not reach it (allowed: 4, 8, 16, 32)"),
    ({"lora_rank": "8"}, "lora_rank is '8', but it must be a whole number (allowed: 1 to 256)"),
    ({"lora_rank": True}, "lora_rank is true, but it must be a whole number (allowed: 1 to 256)"),
    ({"lora_rank": [8]}, "lora_rank is a list of 1, but it must be a whole number (allowed: 1 to 256)"),
    (
        {"lora_rank": 8, "learning_rate": 0.5},
        "learning_rate is 0.5, but space.learning_rate does not reach it",
    ),
    ({"learning_rate": float("nan")}, "learning_rate is nan, but it must be finite"),
    ({"learning_rate": None}, "learning_rate is empty, but it must be a number"),
    ({"lora_rnak": 8}, "did you mean lora_rank?"),
    ({"batch_size": 2}, "batch_size is 2, but space does not search it"),
]


@pytest.mark.parametrize(("params", "why"), REFUSED, ids=[str(params) for params, _ in REFUSED])
def test_what_cannot_be_tried_is_refused_and_the_next_is_asked_for(
    tmp_path: Path, params: dict[str, Any], why: str
) -> None:
    open_store(tmp_path)
    for queued in (params, GOOD):
        notebook(tmp_path).enqueue_trial(queued)
    store = open_store(tmp_path)
    trial = store.ask()
    assert why in (store.why_not_allowed(trial) or "")
    (again,) = open_store(tmp_path).running()  # its driver was killed before it told
    assert (again.number, store.why_not_allowed(again)) == (0, store.why_not_allowed(trial))
    good = store.ask()
    assert store.why_not_allowed(good) is None
    assert good.params.items() >= GOOD.items()
    assert good.params.keys() == DEMO.space.keys()


def test_a_value_is_taken_in_its_setting_s_own_type(tmp_path: Path) -> None:
    """Otherwise the same trial would have other settings when it resumes."""
    open_store(tmp_path)
    notebook(tmp_path).enqueue_trial({"lora_alpha": 4})
    store = open_store(tmp_path)
    asked = store.ask().params
    (again,) = open_store(tmp_path).running()
    assert (type(asked["lora_alpha"]), again.params) == (float, asked)


def test_a_trial_that_is_queued_while_the_sweep_runs_comes_next(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = store.ask()
    store.tell(first, complete(0, 6.1))
    notebook(tmp_path).enqueue_trial(GOOD)
    assert store.ask().params.items() >= GOOD.items()


def test_entries_taken_out_of_first_before_they_ran_are_not_run_and_count_nowhere(tmp_path: Path) -> None:
    first = [{"lora_rank": rank} for rank in (32, 4, 8)]
    store = open_store(tmp_path)
    assert store.enqueue(first) == []
    notebook(tmp_path).enqueue_trial({"lora_rank": 16})
    assert store.ask().params["lora_rank"] == 32
    store = open_store(tmp_path)
    assert store.enqueue(first[2:]) == [{"lora_rank": 4}]  # the first one is at work already
    assert store.enqueue(first[2:]) == []
    assert [store.ask().params["lora_rank"] for _ in range(2)] == [8, 16]
    assert store.finished() == []
    assert store.enqueue(first) == []  # it is there again, and is tried
    assert store.ask().params["lora_rank"] == 4
    assert len(store.trials()) == 5


def test_what_an_older_version_queued_of_first_is_taken_out_too(tmp_path: Path) -> None:
    """Older versions queued without a mark, as a notebook does; the study's frozen copy tells them apart."""
    store = open_store(tmp_path)
    for params in ({"lora_rank": 32}, {"lora_rank": 4}, {"lora_rank": 16}):
        notebook(tmp_path).enqueue_trial(params)
    store.claim([{"lora_rank": 32}, {"lora_rank": 4}])
    assert store.enqueue([{"lora_rank": 4}]) == [{"lora_rank": 32}]
    assert [store.ask().params["lora_rank"] for _ in range(2)] == [4, 16]


@pytest.mark.parametrize("opened", OPENED)
def test_a_study_of_another_name_is_refused(tmp_path: Path, opened: Callable[[Path, str], object]) -> None:
    open_store(tmp_path)
    opened(tmp_path, "demo")
    with pytest.raises(
        StudyError, match=r"study\.db: it holds study demo, and .* cannot be renamed .* \(other\)"
    ) as raised:
        opened(tmp_path, "other")
    assert len(str(raised.value).splitlines()) == 1
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/study.db") == ["demo"]


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        (
            "v2.6.0.a",
            "an older Optuna than the installed .*; copy it, then .*optuna storage upgrade --storage "
            ".*sqlite",
        ),
        ("v9.0.0.a", "a newer Optuna than the installed .*; go on with the installation that made it"),
    ],
)
@pytest.mark.parametrize("opened", OPENED)
def test_another_optuna_s_tables_are_one_line(
    tmp_path: Path, revision: str, told: str, opened: Callable[[Path, str], object]
) -> None:
    tmp_path = tmp_path / "it's"
    tmp_path.mkdir()
    open_store(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as db:
        db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(StoreError, match=told) as raised:
        opened(tmp_path, "demo")
    assert len(str(raised.value).splitlines()) == 1
    if "upgrade" in told:
        assert shlex.split(str(raised.value).partition("copy it, then ")[2])[-1] == sqlite_address(
            tmp_path / "study.db"
        )


def test_a_database_that_a_driver_left_half_written_is_left_to_the_start(tmp_path: Path) -> None:
    open_store(tmp_path)
    (tmp_path / "killed").mkdir()
    with sqlite3.connect(tmp_path / "study.db") as db:
        db.execute("PRAGMA cache_size = 1")  # so that it writes before it commits
        for number in range(2000):
            db.execute("INSERT INTO trials (number, study_id, state) VALUES (?, 1, 'FAIL')", (number,))
        for name in ("study.db", "study.db-journal"):
            shutil.copy(tmp_path / name, tmp_path / "killed")
        db.rollback()
    before = {path: path.read_bytes() for path in (tmp_path / "killed").iterdir()}
    check_held(tmp_path / "killed" / "study.db", "demo")
    assert {path: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == before
    assert open_store(tmp_path / "killed").trials() == []
