"""Addresses: a SQLite URL names the right file whatever its path, and an address is shown without secrets."""

import shutil
import tempfile
from pathlib import Path

import optuna
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from core.folders import Runs
from sweep.search.optuna_study import Store
from sweep.study.space import Choices
from sweep.tracking.store import open_experiment
from sweep.tracking.uri import NOT_SHOWN, plain_line, shown_address, sqlite_address, tracking_place

NAMES = ["a?b", "#a%b%41", "%2e%2e", " 水彩 a", "a;b;d=1", "{a}@b:c&d=e", "a?uri=true", "~a'b\"c\\d\n"]
SPACE = {"lora_rank": Choices(choices=(2, 4))}
FOLDER_NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 200)


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
def test_runs_and_images_lie_in_their_folder_and_are_found_under_every_name(
    tmp_path, monkeypatch, empty_store, name
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = Runs(tmp_path / name)
    runs.study("s").path.mkdir(parents=True)
    shutil.copy(empty_store, runs.tracking_db)
    (tmp_path / name / "1.png").write_bytes(b"image")

    Store(runs.study("s").db, "s", SPACE, seed=0, startup_trials=1).ask()
    client, experiment = open_experiment(runs, "s", tracking_place(runs))
    run_id = client.create_run(experiment).info.run_id
    client.log_artifact(run_id, str(tmp_path / name / "1.png"), "story")

    assert Path(client.download_artifacts(run_id, "story/1.png")).read_bytes() == b"image"
    assert (runs.artifacts / run_id / "artifacts" / "story" / "1.png").exists()
    assert len(optuna.load_study(storage=sqlite_address(runs.study("s").db), study_name="s").trials) == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_two_runs_folders_with_a_question_mark_share_nothing(tmp_path):
    for name in ("a?1", "a?2"):
        (tmp_path / name).mkdir()
        Store(tmp_path / name / "study.db", "s", SPACE, seed=0, startup_trials=1).ask()
    for name in ("a?1", "a?2"):
        assert (
            len(
                optuna.load_study(storage=sqlite_address(tmp_path / name / "study.db"), study_name="s").trials
            )
            == 1
        )


def test_a_path_that_is_not_utf8_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"not UTF-8, and no address can hold it; rename the folder"
    ) as raised:
        sqlite_address(tmp_path / "a\udcff" / "a.db")
    assert str(raised.value).isascii()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:se@cret@host:5000/x", "http://host:5000/x"),
        ("http://ann:se/cret@host:5000/x", "http://..."),
        ("http://ann:5/cret@host:5000/x", "http://..."),
        ("http://ann:se?cret@host:5000/x", "http://..."),
        ("http://ann:se#cret@host:5000/x", "http://..."),
        ("http://secret", "http://secret"),  # a host, as far as anybody can tell
        ("http://ann:secret", "http://..."),
        ("https://host/mlflow?token=secret", "https://host/mlflow"),
        ("https://host/mlflow;token=secret", "https://host/..."),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("postgresql+psycopg://ann:secret@host/db?password=secret", "postgresql+psycopg://host/db"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///"),
        ("sqlite:////home/ann@work/mlflow.db?key=secret", "sqlite:////home/ann@work/mlflow.db"),
        ("ann:secret@host", NOT_SHOWN),
        ("http:/ann:secret@host", NOT_SHOWN),
        ("htp://ann:secret@host", NOT_SHOWN),
        ("ann:secret@http://host", NOT_SHOWN),
        ("", NOT_SHOWN),
    ],
)
def test_scheme_host_port_and_path_are_shown(address, shown):
    assert shown_address(address) == shown


PARTS = (
    "{0}:x@host",
    "ann:{0}@host",
    "ann:a/{0}@host",
    "ann:{0}/a@host",
    "host/?token={0}",
    "host/#{0}",
    "host/a;b={0}",
    "ann:{0}",
)


@given(
    scheme=st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc"]),
    part=st.sampled_from(PARTS),
    noise=st.text(st.sampled_from("/?#@:;&=%+ '\"[]\\é水"), max_size=4),
)
def test_no_secret_is_shown_wherever_it_stands(scheme, part, noise):
    assume("@" not in noise or "@" in part)  # else it stands where a host stands
    address = f"{scheme}://{part.format(f'{noise}SECRET')}"
    assert "SECRET" not in shown_address(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://mlflow:S3CRET@host:5000", True),
        ("http://Mlflow@host:5000", True),
        ("postgresql://postgres:S3CRET@host/mlflow", True),
        ("http://mlflow:mlflow@host:5000", False),
        ("http://ann:mlflow@host:5000", False),
        ("http://flow:S3CRET@host", False),
    ],
)
def test_a_user_s_common_name_hides_no_error_and_a_password_always_does(address, shown, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert (
        plain_line(ConnectionError("MLflow, on PostgreSQL: refused")) == "MLflow, on PostgreSQL: refused"
    ) == shown
    assert ("S3CRET" in plain_line(ConnectionError("no S3CRET"))) == ("S3CRET" not in address)


@given(before=st.text(max_size=10), after=st.text(max_size=10), part=st.sampled_from(PARTS))
def test_no_word_of_a_library_passes_with_a_secret_in_it(before, after, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://{part.format('S3CRET')}")
        patch.setenv("MLFLOW_TRACKING_TOKEN", "T0KEN/x")
        for secret in ("S3CRET", "s3cret", "T0KEN"):
            assert secret not in plain_line(ConnectionError(f"{before}{secret}{after}"))


def test_a_library_s_words_are_shown_with_their_addresses_cleaned(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pass@host:5000")
    error = ConnectionError("API request to http://ann:pass@host:5000/api?x=1 failed:\n Connection refused")
    assert plain_line(error) == "API request to http://host:5000/api failed: Connection refused"
    assert plain_line(ConnectionError("ann may not")).startswith("ConnectionError, whose text is not shown")
