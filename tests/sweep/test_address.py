"""A path as an address: what is written there lies there, under every name, and nothing lies beside it."""
import shutil
import tempfile
from pathlib import Path

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from core.folders import Runs
from sweep.address import sqlite_address
from sweep.store import Store
from sweep.tracking_store import open_experiment
from sweep.tracking_uri import tracking_uri

NAMES = ["a?b", "#a%b%41", "%2e%2e", " 水彩 a", "a;b;d=1", "{a}@b:c&d=e", "a?uri=true", "~a'b\"c\\d\n"]
SPACE = {"lora_rank": optuna.distributions.CategoricalDistribution([2, 4])}
FOLDER_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 200)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(sqlite_address(file))
    return file


@given(name=FOLDER_NAMES)
@example(name="a?b")
@example(name="a%3Fb")
@settings(max_examples=100, deadline=None)
def test_sqlite_opens_the_file_itself_under_every_name(name):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name, "a.db")
        file.parent.mkdir()
        engine = create_engine(sqlite_address(file))
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE t (x)"))
        engine.dispose()
        assert file.stat().st_size
        assert [path.name for path in Path(folder).iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_pictures_lie_in_their_folder_and_are_found_under_every_name(tmp_path, monkeypatch, empty_store, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = Runs(tmp_path / name)
    runs.study("s").path.mkdir(parents=True)
    shutil.copy(empty_store, runs.tracking_db)
    (tmp_path / name / "1.png").write_bytes(b"picture")

    Store(runs.study("s").db, "s", SPACE, seed=0, startup_trials=1).ask()
    client, experiment = open_experiment(runs, "s", tracking_uri(runs))
    run_id = client.create_run(experiment).info.run_id
    client.log_artifact(run_id, str(tmp_path / name / "1.png"), "story")

    assert Path(client.download_artifacts(run_id, "story/1.png")).read_bytes() == b"picture"
    assert (runs.artifacts / run_id / "artifacts" / "story" / "1.png").exists()
    assert len(optuna.load_study(storage=sqlite_address(runs.study("s").db), study_name="s").trials) == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_two_runs_folders_with_a_question_mark_share_nothing(tmp_path):
    for name in ("a?1", "a?2"):
        (tmp_path / name).mkdir()
        Store(tmp_path / name / "study.db", "s", SPACE, seed=0, startup_trials=1).ask()
    for name in ("a?1", "a?2"):
        assert len(optuna.load_study(storage=sqlite_address(tmp_path / name / "study.db"), study_name="s").trials) == 1


def test_a_path_that_is_not_utf8_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"not UTF-8, and no address can hold it; rename the folder") as raised:
        sqlite_address(tmp_path / "a\udcff" / "a.db")
    assert str(raised.value).isascii()

