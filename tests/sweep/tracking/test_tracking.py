"""What is logged to MLflow, and that all of it arrives once, whatever MLflow does meanwhile. No torch: the
trials are made by hand.
"""

import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests
import sqlalchemy
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import gc as mlflow_gc
from mlflow.entities import Experiment
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from mlflow.utils.async_logging.async_logging_queue import AsyncLoggingQueue

from core.files.files import write_json
from core.files.install import ROOT
from core.folders import Runs, TrialFolder
from core.trial.result import Result
from core.trial.spec import Training, TrialSpec
from sweep.doctor.tracking import check_tracking
from sweep.tracking import tracking as tracking_module
from sweep.tracking.entities import result_tags
from sweep.tracking.experiment import StudyFacts
from sweep.tracking.store import EXPERIMENT_TAGS
from sweep.tracking.tracking import Tracking, open_tracking
from sweep.tracking.uri import sqlite_address
from tests.examples import STUDY, fill, make_failure, make_result, make_spec
from tests.prepared import EMPTY_STORE
from tests.sweep.tracking.mlflow_store import Content, Server, artifacts, content, free_port, store_uri

NOON = 1_700_000_000.0  # s; files and events are dated by hand, so that two stores can be compared
TRAINING = Training(lora_rank=4, epochs=2, steps_per_epoch=3)
SETTINGS = {"backbone": "kolors", "seed": 7}
SAMPLED = ["learning_rate"]


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A study's folder as its trials leave it (base, complete, failed, complete), beside a database that is
    empty.

    To make MLflow's tables takes seconds, to copy them does not.
    """
    runs = Runs(tmp_path_factory.mktemp("told"))
    MlflowClient(store_uri(runs))
    study = runs.study(STUDY)
    study.path.mkdir()
    study.frozen.write_text("name: lake_painter\n")
    fill(study.base, make_spec(-1, train=None), 5.5)
    for number, mean in ((0, 6.25), (2, 6.5)):
        fill(study.trial(number), spec(number), mean)
        write_json(study.trial(number).recipe, {"trial": number})
    study.trial(1).path.mkdir()
    write_json(study.trial(1).result, make_failure(spec(1)))
    (study.trial(1).path / "traceback.txt").write_text("Traceback")
    for folder in (study.base, *map(study.trial, range(3))):
        date(folder, NOON)
    return runs


@pytest.fixture
def runs(tmp_path: Path, told: Runs, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Runs(shutil.copytree(told.path, tmp_path / "runs"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, told: Runs) -> Content:
    """What MLflow holds when nothing goes wrong."""
    runs = Runs(shutil.copytree(told.path, tmp_path_factory.mktemp("undisturbed") / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        play(runs, open_tracking(runs, STUDY))
    return content(store_uri(runs))


def spec(number: int) -> TrialSpec:
    return make_spec(
        number, train=replace(TRAINING, learning_rate=1e-4 * (1 + number)), prompts=("a lake", "a boat")
    )


def date(folder: TrialFolder, noon: float) -> None:
    """Two epochs of three steps from `noon` on, then the result if there is one."""
    folder.path.mkdir(exist_ok=True)
    events = [{"event": "started", "time": noon}] + [
        {
            "event": "epoch",
            "time": noon + epoch,
            "epoch": epoch,
            "losses": [0.5 / epoch, 0.4 / epoch, 0.3 / epoch],
        }
        for epoch in (1, 2)
    ]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    if folder.result.exists():
        os.utime(folder.result, (noon + 5, noon + 5))


def result(runs: Runs, number: int) -> Result:
    found = runs.study(STUDY).trial(number).read_result()
    assert found
    return found


def begin(runs: Runs, tracking: Tracking, trials: Collection[int] = range(6)) -> None:
    assert runs.study(STUDY).base.read_result()
    tracking.log_study(StudyFacts(settings=dict(SETTINGS), tags={}, trials=trials))


def whole_trial(runs: Runs, tracking: Tracking, number: int) -> None:
    for _ in range(2):  # it starts, and an epoch is trained
        tracking.log_trial(spec(number), SAMPLED)
    tracking.log_trial(spec(number), SAMPLED, result(runs, number))


def repeat(runs: Runs, tracking: Tracking) -> None:
    """Trial 3 repeats trial 0: its folder has the result alone."""
    stored, folder = result(runs, 0), runs.study(STUDY).trial(3)
    again = replace(stored, spec=replace(stored.spec, number=3), duration_s=0.0, same_as=0)
    write_json(folder.result, again)
    os.utime(folder.result, (NOON + 5, NOON + 5))
    tracking.log_trial(again.spec, SAMPLED, again)


def play(
    runs: Runs,
    tracking: Tracking,
    disturb: Callable[[], object] = lambda: None,
    mend: Callable[[], object] = lambda: None,
) -> None:
    """A whole sweep as the driver tells it; its middle third may be disturbed."""
    begin(runs, tracking)
    whole_trial(runs, tracking, 0)
    tracking.log_trial(spec(1), SAMPLED)
    assert tracking.flush(60)
    disturb()
    tracking.log_trial(spec(1), SAMPLED, result(runs, 1))
    whole_trial(runs, tracking, 2)
    mend()
    repeat(runs, tracking)
    tracking.finish_study("FINISHED", [2])


@contextmanager
def unavailable_server() -> Iterator[str]:
    """Answers every request with 503."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def small_proxy() -> Iterator[tuple[str, list[str]]]:
    """Takes files by PUT, but no LoRA: too large for it. Yields its address and the names that it took."""
    took: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(413 if self.path.endswith("lora.safetensors") else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            took.append(self.path.rpartition("/")[2])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/artifacts", took
        server.shutdown()


class Locked:
    """Another process holds the database for itself."""

    def __init__(self, path: Path) -> None:
        code = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None); "
            "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"locked\n"

    def release(self) -> None:
        self._process.communicate()


@contextmanager
def impatient_sqlite() -> Iterator[None]:
    """MLflow 3.17 waits 20 s for a locked database (store/db/utils.py); nobody wants that in a test."""

    def shorten(_connection, _cursor, statement: str, parameters, _context, _many):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 20"), parameters

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", shorten, retval=True)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", shorten)


def test_mlflow_has_one_run_a_trial_with_everything(undisturbed):
    assert undisturbed.keys() == {STUDY, *(f"trial-000{number}" for number in range(4))}
    assert {name: run["status"] for name, run in undisturbed.items()} == {
        STUDY: "FINISHED",
        "trial-0000": "FINISHED",
        "trial-0001": "FAILED",
        "trial-0002": "FINISHED",
        "trial-0003": "FINISHED",
    }
    trial = undisturbed["trial-0002"]
    assert trial["parent"] == STUDY
    assert (
        trial["params"].items()
        >= {
            "lora_rank": "4",
            "seed": "7",
            "backbone": "kolors",
            "precision": "fp32",
            "gate": "6.0",
            "data": "images",
            "caption": "{prompt}, watercolor <style>",
            "min_images": "4",
        }.items()
    )
    assert trial["metrics"]["train_loss"] == [
        (step + 1, pytest.approx(loss), (NOON + 1 + step // 3) * 1000)
        for step, loss in enumerate([0.5, 0.4, 0.3, 0.25, 0.2, 0.15])
    ]
    assert trial["metrics"]["aesthetic_mean"] == [(0, 6.5, (NOON + 5) * 1000)]
    assert trial["artifacts"].keys() == {
        "story.png",
        "story/1.png",
        "story/2.png",
        "lora/lora.safetensors",
        "recipe.json",
    }
    assert (trial["tags"]["gate"], trial["tags"]["winner"]) == ("pass", "true")


def test_a_failed_trial_has_its_reason_and_its_traceback(undisturbed):
    trial = undisturbed["trial-0001"]
    assert (trial["tags"]["state"], trial["tags"]["reason"]) == ("failed", "nan_loss")
    assert trial["artifacts"].keys() == {"traceback.txt"}


@pytest.mark.parametrize(("micro_batch", "told"), [(4, None), (2, "4 -> 2")])
def test_a_smaller_micro_batch_is_told_where_it_is_one(micro_batch, told):
    trained = make_spec(0, train=replace(TRAINING, batch_size=4))
    again = replace(make_result(trained, 6.0), retried=("cuda_oom",), micro_batch=micro_batch)
    assert result_tags(again).get("micro_batch_changed") == told


def test_an_exact_repeat_has_a_run_of_its_own_with_the_stored_result_and_costs_no_upload(undisturbed):
    trial, repeated = undisturbed["trial-0003"], undisturbed["trial-0000"]
    assert trial["tags"]["same_as"] == "0"
    assert trial["tags"]["trial_number"] == "3"
    assert trial["metrics"] == repeated["metrics"] | {"duration_s": [(0, 0.0, (NOON + 5) * 1000)]}
    assert (trial["artifacts"], trial["params"]) == ({}, repeated["params"])


def test_the_base_model_s_story_is_on_the_parent_run(undisturbed):
    parent = undisturbed[STUDY]
    assert parent["params"] == {"backbone": "kolors", "seed": "7"}
    assert parent["metrics"]["base_aesthetic_mean"] == [(0, 5.5, (NOON + 5) * 1000)]
    assert parent["artifacts"].keys() == {"study.yaml", "base/story.png"}


def test_everything_told_again_changes_nothing(runs, undisturbed):
    for _ in range(2):
        runs.study(STUDY).tracked.unlink(missing_ok=True)
        play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == undisturbed
    assert experiment_of(runs).tags.items() >= EXPERIMENT_TAGS.items()


def test_what_was_sent_is_known_at_the_next_start(runs):
    play(runs, open_tracking(runs, STUDY))
    again = open_tracking(runs, STUDY)
    assert again.sent() == {0, 1, 2, 3}
    again.close()


def test_what_was_sent_is_not_sent_again_though_mlflow_answers_only_after_the_start(
    runs, undisturbed, monkeypatch
):
    play(runs, open_tracking(runs, STUDY))
    shutil.rmtree(runs.study(STUDY).trial(2).path)  # tidied away by hand
    monkeypatch.setattr(tracking_module, "START_S", 0.0)
    lock = Locked(runs.tracking_db)
    tracking = open_tracking(runs, STUDY)
    assert tracking.sent() == set()
    begin(runs, tracking)
    tracking.log_trial(spec(0), SAMPLED, result(runs, 0))
    tracking.log_trial(spec(2), SAMPLED, make_failure(spec(2), "killed"))
    with monkeypatch.context() as patch:
        patch.delattr(MlflowClient, "log_batch")
        lock.release()
        tracking.finish_study("FINISHED", [2])
    assert tracking.sent() == {0, 1, 2, 3}
    assert content(store_uri(runs)) == undisturbed


def test_a_file_too_large_for_the_server_holds_nothing_up(runs, monkeypatch, caplog):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with small_proxy() as (address, took):
        client = MlflowClient(store_uri(runs))
        experiment = client.create_experiment(STUDY, artifact_location=address)
        play(runs, open_tracking(runs, STUDY))
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {run.info.status for name, run in found.items() if name != "trial-0001"} == {"FINISHED"}
    assert found["trial-0002"].data.metrics["aesthetic_mean"] == 6.5
    assert took.count("recipe.json") == 2  # of the trials that are no repeat; it comes after the LoRA
    assert experiment_of(runs).tags.items() >= EXPERIMENT_TAGS.items()  # it was made without them
    assert "takes no file as large as" in caplog.text
    assert str(runs.study(STUDY).trial(0).lora) in caplog.text


def test_a_new_result_of_a_trial_that_was_sent_is_sent(runs):
    play(runs, open_tracking(runs, STUDY))
    folder = runs.study(STUDY).trial(0)
    write_json(folder.result, replace(result(runs, 0), aesthetic_mean=7.0))
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    tracking.log_trial(spec(0), SAMPLED, result(runs, 0))
    tracking.finish_study("FINISHED", [0])
    child = content(store_uri(runs))["trial-0000"]
    assert [value for _, value, _ in child["metrics"]["aesthetic_mean"]] == [7.0]
    assert len(child["metrics"]["train_loss"]) == 6
    assert child["artifacts"].keys() >= {"story.png", "lora/lora.safetensors"}
    assert child["tags"]["winner"] == "true"


def start_knowing(runs: Runs, *numbers: int) -> Tracking:
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking, numbers)
    assert tracking.flush(60)
    return tracking


def test_runs_of_trials_that_the_study_lost_are_deleted(runs):
    play(runs, open_tracking(runs, STUDY))
    tracking = start_knowing(runs, 0, 2)
    assert run_ids(runs).keys() == {STUDY, "trial-0000", "trial-0002"}
    assert tracking.sent() == {0, 2}
    tracking.close()


def test_studies_of_one_name_in_two_runs_folders_share_a_store_without_harm(
    runs, told, undisturbed, tmp_path, monkeypatch
):
    """Trials of the same number with other settings, one of them running, and a study with fewer trials."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(runs))
    at_work = open_tracking(runs, STUDY)
    begin(runs, at_work)
    at_work.log_trial(spec(0), SAMPLED)
    assert at_work.flush(60)

    other = Runs(shutil.copytree(told.path, tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setitem(SETTINGS, "seed", 8)
        play(other, open_tracking(other, STUDY))
        start_knowing(other, 0).finish_study("FINISHED", [0])
    theirs = content(store_uri(runs), study_id=study_id(other))
    assert theirs.keys() == {STUDY, "trial-0000"}
    assert theirs[STUDY]["params"]["seed"] == "8"

    at_work.close()
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs), study_id=study_id(runs)) == undisturbed


def study_id(runs: Runs) -> str:
    return runs.study(STUDY).tracking_id.read_text().split()[0]


def test_a_store_that_becomes_shared_keeps_what_was_sent_before(runs, undisturbed, monkeypatch):
    play(runs, open_tracking(runs, STUDY))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(runs))
    tracking = open_tracking(runs, STUDY)
    assert tracking.sent() == {0, 1, 2, 3}
    tracking.close()
    assert content(store_uri(runs), study_id=study_id(runs)) == undisturbed


def test_another_store_has_nothing_yet(runs, told, undisturbed, monkeypatch):
    play(runs, open_tracking(runs, STUDY))
    other = f"sqlite:///{shutil.copy(told.tracking_db, runs.path / 'other.db')}"
    # a copy has the date of birth of its original
    with closing(sqlite3.connect(runs.path / "other.db")) as store, store:
        store.execute("UPDATE experiments SET creation_time = creation_time + 1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    tracking = open_tracking(runs, STUDY)
    assert tracking.sent() == set()
    play(runs, tracking)
    assert content(other) == undisturbed


def test_a_server_killed_while_images_are_sent_and_gone_for_the_middle_third(
    runs, undisturbed, monkeypatch, caplog
):
    server = Server(runs, free_port())
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(tracking_module, "END_S", 60)  # a machine that runs tests is slow
    killed = threading.Event()
    log_artifact = MlflowClient.log_artifact
    took: list[str] = []

    def kill_at_an_image(client: MlflowClient, run_id: str, path: str, where: str | None = None) -> None:
        log_artifact(client, run_id, path, where)
        if "/0002/" in path:
            took.append(path)
        if path.endswith("0002/story/1.png") and not killed.is_set():
            server.kill()
            killed.set()

    def start_again() -> None:
        assert killed.wait(60)
        assert not tracking.flush(0.5)
        server.start()

    monkeypatch.setattr(MlflowClient, "log_artifact", kill_at_an_image)
    try:
        tracking = open_tracking(runs, STUDY)
        play(runs, tracking, mend=start_again)
        assert content(server.uri) == undisturbed
    finally:
        server.kill()
    assert len(took) == len(set(took))  # a trial that was cut short goes on where it was
    assert [line.partition(" (")[0] for line in caplog.messages] == [
        "MLflow takes nothing at the moment",
        "MLflow answers again; sending what waited",
    ]


REQUESTS = (
    "create_experiment",
    "create_run",
    "delete_run",
    "get_experiment",
    "get_experiment_by_name",
    "get_metric_history",
    "log_artifact",
    "log_batch",
    "search_runs",
    "set_tag",
    "set_terminated",
    "update_run",
)


def test_each_request_fails_once_before_or_after_mlflow_has_carried_it_out(runs, undisturbed, monkeypatch):
    seen: set[str] = set()

    def failing_once(request: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            name = f"{request.__name__}{words[1:]}{more}"
            if name in seen:
                return request(*words, **more)
            seen.add(name)
            if len(seen) % 2:
                request(*words, **more)
            raise ConnectionError("lost on the way there, or on the way back")

        return call

    with monkeypatch.context() as patch:
        patch.setattr(tracking_module, "FIRST_PAUSE_S", 0.0)
        for name in REQUESTS:
            patch.setattr(MlflowClient, name, failing_once(getattr(MlflowClient, name)))
        play(runs, open_tracking(runs, STUDY))
    assert len(seen) > 50
    assert content(store_uri(runs)) == undisturbed


def test_a_server_that_is_never_there_fails_nothing_and_the_next_start_sends_all(
    runs, undisturbed, monkeypatch, caplog
):
    with unavailable_server() as address, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@{address}")
        patch.setattr(tracking_module, "END_S", 0.1)
        tracking = open_tracking(runs, STUDY)
        begin(runs, tracking)
        for number in range(3):
            whole_trial(runs, tracking, number)
        tracking.finish_study("FINISHED", [2])
        assert tracking.sent() == set()
    lines = [record.getMessage() for record in caplog.records]
    assert [line[:28] for line in lines] == ["MLflow takes nothing at the ", "MLflow has not received ever"]
    assert f"http://{address}" in lines[0]
    assert "secret" not in "".join(lines)
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == undisturbed


def test_an_end_waits_for_a_slow_mlflow_that_takes_one_file_after_the_other(runs, undisturbed, monkeypatch):
    log_artifact = MlflowClient.log_artifact

    def slowly(*words: Any) -> None:
        time.sleep(1)
        log_artifact(*words)

    monkeypatch.setattr(MlflowClient, "log_artifact", slowly)
    monkeypatch.setattr(
        tracking_module, "END_S", 6.0
    )  # less than all files, more than any one on a busy machine
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == undisturbed


def test_a_start_and_an_end_wait_for_no_mlflow_once_the_user_asked_to_stop(runs, monkeypatch):
    monkeypatch.setattr(tracking_module, "STOPPED_S", 0.1)
    for name in ("START_S", "END_S"):
        monkeypatch.setattr(tracking_module, name, 60.0)
    with unavailable_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        began = time.monotonic()
        tracking = open_tracking(runs, STUDY, stop_asked=lambda: True)
        begin(runs, tracking)
        tracking.finish_study("KILLED")
    assert time.monotonic() - began < 10


def test_a_database_locked_for_longer_than_mlflow_waits(runs, undisturbed, caplog):
    held: list[Locked] = []

    def lock() -> None:
        held.append(Locked(runs.tracking_db))

    def unlock() -> None:
        assert not tracking.flush(0.5)
        held.pop().release()

    with impatient_sqlite():
        tracking = open_tracking(runs, STUDY)
        play(runs, tracking, disturb=lock, mend=unlock)
    assert content(store_uri(runs)) == undisturbed
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0] for line in lines] == [
        "MLflow takes nothing at the moment",
        "MLflow answers again; sending what waited",
    ]
    assert "database is locked" in lines[0]


def test_a_database_locked_at_the_start(runs, undisturbed, monkeypatch):
    monkeypatch.setattr(tracking_module, "START_S", 0.2)
    with impatient_sqlite():
        lock = Locked(runs.tracking_db)
        tracking = open_tracking(runs, STUDY)
        begin(runs, tracking)
        assert not tracking.flush(0.2)
        lock.release()
        play(runs, tracking)
    assert content(store_uri(runs)) == undisturbed


def test_an_artifact_folder_that_takes_nothing_until_it_is_mended(runs, undisturbed):
    whole = runs.artifacts.with_name("whole")

    def spoil() -> None:
        runs.artifacts.rename(whole)
        runs.artifacts.write_text("a file where the folder should be: for root, every folder can be written")

    def mend() -> None:
        assert not tracking.flush(0.5)
        runs.artifacts.unlink()
        whole.rename(runs.artifacts)

    tracking = open_tracking(runs, STUDY)
    play(runs, tracking, disturb=spoil, mend=mend)
    assert content(store_uri(runs)) == undisturbed


def test_a_restarted_trial_goes_on_in_its_run_without_a_step_twice(runs, undisturbed):
    first = open_tracking(runs, STUDY)
    begin(runs, first)
    first.log_trial(spec(0), SAMPLED)
    first.log_trial(spec(0), SAMPLED)
    first.finish_study("KILLED")
    assert content(store_uri(runs))["trial-0000"]["status"] == "KILLED"
    date(runs.study(STUDY).trial(0), NOON - 3600)  # the second attempt, after the clock was set back an hour
    second = open_tracking(runs, STUDY)
    begin(runs, second)
    whole_trial(runs, second, 0)
    second.finish_study("FINISHED", [0])
    trial = content(store_uri(runs))["trial-0000"]
    assert trial["status"] == "FINISHED"
    assert trial["metrics"]["train_loss"] == undisturbed["trial-0000"]["metrics"]["train_loss"]
    assert trial["metrics"]["aesthetic_mean"] == [(0, 6.25, (NOON - 3595) * 1000)]


def run_ids(runs: Runs) -> dict[str, str]:
    found = MlflowClient(store_uri(runs)).search_runs([experiment_of(runs).experiment_id])
    return {run.info.run_name: run.info.run_id for run in found}


def experiment_of(runs: Runs) -> Experiment:
    experiment = MlflowClient(store_uri(runs)).get_experiment_by_name(STUDY)
    assert experiment
    return experiment


def test_an_unfinished_trial_starts_again_in_a_new_run_once_the_study_has_another_seed(runs, undisturbed):
    found = []
    for seed in (6, 7):
        tracking = open_tracking(runs, STUDY)
        begin(runs, tracking)
        tracking.log_trial(replace(spec(0), seed=seed), SAMPLED)
        assert tracking.flush(60)
        tracking.close()
        found.append(run_ids(runs)["trial-0000"])
        date(runs.study(STUDY).trial(0), NOON + 10)
    assert found[0] != found[1]
    losses = content(store_uri(runs))["trial-0000"]["metrics"]["train_loss"]
    assert {time_ms for _, _, time_ms in losses} == {(NOON + 11) * 1000, (NOON + 12) * 1000}


def test_a_run_from_before_a_param_was_told_is_completed(runs, undisturbed):
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialSpec, "all_params", TrialSpec.params)
        tracking.log_trial(spec(0), SAMPLED)
        assert tracking.flush(60)
        tracking.close()
    before = run_ids(runs)["trial-0000"]
    assert "seed" not in content(store_uri(runs))["trial-0000"]["params"]
    play(runs, open_tracking(runs, STUDY))
    assert run_ids(runs)["trial-0000"] == before
    assert content(store_uri(runs)) == undisturbed


def test_runs_that_a_killed_driver_left_open_are_ended_at_the_next_start(runs):
    date(runs.study(STUDY).trial(5), time.time() + 3600)  # the clock is set back an hour then
    killed = open_tracking(runs, STUDY)
    begin(runs, killed)
    killed.log_trial(spec(5), [])
    assert killed.flush(60)
    killed.close()
    following = open_tracking(runs, STUDY)
    begin(runs, following)
    assert following.flush(60)
    ended = MlflowClient(store_uri(runs)).get_run(run_ids(runs)["trial-0005"]).info
    assert ended.end_time == ended.start_time
    statuses = {name: run["status"] for name, run in content(store_uri(runs)).items()}
    assert statuses == {STUDY: "RUNNING", "trial-0005": "KILLED"}
    following.finish_study("FINISHED")


def test_a_run_made_twice_by_a_request_that_was_given_up_is_one_again(runs, undisturbed):
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    assert tracking.flush(60)
    client = MlflowClient(store_uri(runs))
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment
    for _ in range(2):
        client.create_run(
            experiment.experiment_id,
            run_name="trial-0000",
            tags={"trial_number": "0", "state": "running", "sampled": "learning_rate"},
        )
    play(runs, tracking)
    assert content(store_uri(runs)) == undisturbed


@pytest.fixture(params=["deleted", "purged"])
def delete(request: pytest.FixtureRequest, runs: Runs) -> Callable[..., None]:
    """What a user does in MLflow's UI, to runs by their names; purged with `mlflow gc` as well."""

    def do(*names: str) -> None:
        client, ids = MlflowClient(store_uri(runs)), run_ids(runs)
        for name in names:
            client.delete_run(ids[name])
        if request.param == "purged":
            gc(runs)

    return do


def gc(runs: Runs) -> None:
    done = CliRunner().invoke(
        mlflow_gc, ["--backend-store-uri", store_uri(runs)], env={"MLFLOW_TRACKING_URI": store_uri(runs)}
    )
    assert done.exit_code == 0, done.output


def test_what_the_user_deleted_stays_deleted_and_holds_up_nothing(runs, undisturbed, delete, caplog):
    """A finished run, the winner's and the one at work."""
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    whole_trial(runs, tracking, 0)
    whole_trial(runs, tracking, 2)
    tracking.log_trial(spec(1), SAMPLED)
    assert tracking.flush(60)
    delete("trial-0000", "trial-0001", "trial-0002")
    tracking.log_trial(spec(1), SAMPLED, result(runs, 1))
    repeat(runs, tracking)
    tracking.finish_study("FINISHED", [2])
    left = {name: run for name, run in undisturbed.items() if name in (STUDY, "trial-0003")}
    assert content(store_uri(runs)) == left
    assert caplog.messages == [
        "MLflow: the run of trial 1 was deleted there; it stays deleted, its folder has everything"
    ]
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == left


def test_the_winners_tag_moves_on_where_the_user_deleted_the_winners_run(runs, delete):
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    whole_trial(runs, tracking, 0)
    whole_trial(runs, tracking, 2)
    tracking.finish_study("FINISHED", [2, 0])
    assert tagged_as_winner(runs) == ["trial-0002"]
    delete("trial-0002")
    open_tracking(runs, STUDY).finish_study("FINISHED", [2, 0])
    assert tagged_as_winner(runs) == ["trial-0000"]


def tagged_as_winner(runs: Runs) -> list[str]:
    client = MlflowClient(store_uri(runs))
    found = client.search_runs([experiment_of(runs).experiment_id], "tags.winner = 'true'")
    return [run.info.run_name for run in found]


def test_a_parent_run_that_the_user_deleted_is_made_anew_with_all_it_had(runs, undisturbed, delete):
    tracking = open_tracking(runs, STUDY)
    play(runs, tracking, disturb=lambda: delete(STUDY))
    assert content(store_uri(runs)) == undisturbed
    delete(STUDY, "trial-0000")
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == {
        name: run for name, run in undisturbed.items() if name != "trial-0000"
    }


def test_an_experiment_that_the_user_purged_is_made_anew_for_what_comes(
    runs, undisturbed, monkeypatch, caplog
):
    monkeypatch.setattr(tracking_module, "FIRST_PAUSE_S", 0.05)

    def delete_experiment() -> None:
        MlflowClient(store_uri(runs)).delete_experiment(experiment_of(runs).experiment_id)

    def purge() -> None:
        assert not tracking.flush(0.5)
        gc(runs)

    tracking = open_tracking(runs, STUDY)
    play(runs, tracking, disturb=delete_experiment, mend=purge)
    left = content(store_uri(runs))
    assert left == {
        name: run for name, run in undisturbed.items() if name not in ("trial-0000", "trial-0001")
    }
    assert "was deleted: restore it there" in caplog.text
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == left


def test_what_mlflow_refuses_holds_up_nothing_else(runs, caplog):
    date(runs.study(STUDY).trial(0), -100.0)  # MLflow takes no metric of before 1970
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    whole_trial(runs, tracking, 0)
    whole_trial(runs, tracking, 2)
    assert tracking.flush(60)
    assert tracking.sent() == {2}
    tracking.close()
    (line,) = caplog.messages
    assert line.startswith("MLflow refuses trial 0: ")
    assert "timestamp" in line


def test_a_copied_runs_folder_on_a_shared_store_takes_an_id_of_its_own(
    runs, undisturbed, tmp_path, monkeypatch, caplog
):
    """Copied while trial 1 is at work; the first machine goes on, then the copy starts and knows trials 0 and
    1 alone.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(runs))
    copies: list[Runs] = []

    def copy() -> None:
        copies.append(Runs(shutil.copytree(runs.path, tmp_path / "copy")))

    play(runs, open_tracking(runs, STUDY), disturb=copy)
    (other,) = copies
    tracking = start_knowing(other, 0, 1)
    assert study_id(other) != study_id(runs)
    assert tracking.sent() == set()
    whole_trial(other, tracking, 0)
    tracking.finish_study("FINISHED", [0])
    assert content(store_uri(runs), study_id=study_id(other)).keys() == {STUDY, "trial-0000"}
    assert content(store_uri(runs), study_id=study_id(runs)) == undisturbed
    (line,) = caplog.messages
    assert line.startswith(
        f"MLflow: a copy of {other.study(STUDY).path}, or the folder that it was copied from"
    )
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs), study_id=study_id(runs)) == undisturbed


def test_a_copy_at_work_at_the_same_time_deletes_and_ends_no_run_that_it_did_not_make(
    runs, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(runs))
    first = open_tracking(runs, STUDY)
    begin(runs, first)
    assert first.flush(60)
    other = Runs(shutil.copytree(runs.path, tmp_path / "copy"))
    copied = open_tracking(other, STUDY)  # nothing tells it from the first yet
    assert copied.flush(60)
    whole_trial(runs, first, 2)
    first.log_trial(spec(0), SAMPLED)
    assert first.flush(60)
    before = content(store_uri(runs))
    begin(other, copied, [])
    copied.log_trial(spec(1), SAMPLED)
    copied.finish_study("FINISHED")
    after = content(store_uri(runs))
    assert {name: run["status"] for name, run in after.items()} == {
        STUDY: "FINISHED",
        "trial-0000": "RUNNING",
        "trial-0001": "KILLED",
        "trial-0002": "FINISHED",
    }
    assert after["trial-0002"] == before["trial-0002"]
    first.close()


def uploads_in(runs: Runs) -> set[Path]:
    return {path for path in runs.artifacts.rglob("*") if path.is_file()}


def begin_and_move(runs: Runs, new: Path, move: Callable[[Path, Path], Any]) -> Runs:
    """A sweep up to its first trial; then its folder moves, or is copied."""
    tracking = open_tracking(runs, STUDY)
    begin(runs, tracking)
    whole_trial(runs, tracking, 0)
    tracking.finish_study("KILLED")
    move(runs.path, new)
    _artifact_repos_cache.clear()  # MLflow's, of this process; a user starts another
    return Runs(new)


@pytest.mark.parametrize("old_place", ["gone", "cannot be made"])
def test_a_moved_runs_folder_goes_on_with_its_images(runs, undisturbed, tmp_path, caplog, old_place):
    moved = begin_and_move(runs, tmp_path / "larger?disk", lambda old, new: old.rename(new))
    if old_place == "cannot be made":
        runs.path.write_text("a file in its place: for root, every folder can be made")
    play(moved, open_tracking(moved, STUDY))
    assert content(sqlite_address(moved.tracking_db)) == undisturbed
    assert not runs.artifacts.exists()
    assert caplog.messages == [
        f"{moved.path} was moved or copied here: MLflow's images and LoRAs are from now on those in "
        f"{moved.artifacts}"
    ]


def test_a_copied_runs_folder_never_writes_into_the_original(runs, undisturbed, tmp_path):
    copy = begin_and_move(runs, tmp_path / "copy", shutil.copytree)
    before = uploads_in(runs)
    play(copy, open_tracking(copy, STUDY))
    assert uploads_in(runs) == before
    assert content(store_uri(copy)) == undisturbed


def test_report_mends_a_moved_folder_and_says_so_once(runs, cli, write_study, tmp_path):
    begin_and_move(runs, tmp_path / "moved", lambda old, new: old.rename(new))
    moved = Runs(tmp_path / "moved")
    shutil.copy(write_study(tmp_path, name=STUDY), moved.study(STUDY).frozen)
    said = [cli("report", STUDY, "--runs", moved.path) for _ in range(2)]
    assert [done.returncode for done in said] == [0, 0], said
    assert ["was moved or copied here" in done.stdout for done in said] == [True, False]
    assert artifacts(store_uri(moved), run_ids(moved)["trial-0000"]).keys() >= {"story/1.png"}


def test_a_study_elsewhere_that_logs_to_our_own_store_is_left_alone(
    runs, told, undisturbed, tmp_path, monkeypatch
):
    other = Runs(shutil.copytree(told.path, tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store_uri(runs))
        play(other, open_tracking(other, STUDY))
    play(runs, open_tracking(runs, STUDY))
    start_knowing(runs, 0).close()
    assert content(store_uri(runs), study_id=study_id(other)) == undisturbed


def test_everything_is_logged_at_once_whatever_the_environment_says(runs, undisturbed):
    """Logged in the background, a failed request would be lost and its trial counted as sent."""
    mlflow.config.enable_async_logging(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AsyncLoggingQueue, "activate", lambda _: pytest.fail("logs in the background"))
            play(runs, open_tracking(runs, STUDY))
    finally:
        mlflow.config.enable_async_logging(False)
    assert content(store_uri(runs)) == undisturbed


def test_a_torn_line_of_events_and_a_torn_list_of_what_was_sent_cost_nothing(runs, undisturbed):
    study = runs.study(STUDY)
    study.tracked.write_text('{"parent": "ab')
    with study.trial(0).events.open("a") as events:
        events.write('{"event": "epoch", "ti')
    play(runs, open_tracking(runs, STUDY))
    assert content(store_uri(runs)) == undisturbed


def test_two_first_starts_at_once_on_a_fresh_store(tmp_path):
    code = """
import sys
from pathlib import Path
from core.folders import Runs
from sweep.tracking import tracking
tracking.END_S = 120.0  # a machine that runs tests is slow
runs, study = Runs(Path(sys.argv[1])), sys.argv[2]
runs.study(study).path.mkdir(parents=True)
print("ready", flush=True)
sys.stdin.readline()
tracking.open_tracking(runs, study).finish_study("FINISHED")
"""
    runs = Runs(tmp_path / "runs")
    runs.path.mkdir()
    (runs.path / ".mlflow.db.1.tmp").write_bytes(b"half a store, left by a process that was killed")
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | {
        "PYTHONPATH": str(ROOT)
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(runs.path), study],
            stdin=subprocess.PIPE,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for study in ("one", "two")
    ]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=120)[1].decode(), process.returncode) for process in started]
    assert ends == [("", 0), ("", 0)]
    for study in ("one", "two"):
        assert content(store_uri(runs), study)[study]["status"] == "FINISHED"
    assert not list(runs.path.glob(".mlflow.db.*"))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gopher://ann:secret@host", "allowed: an address that starts with one of http"),
        ("runs/mlruns", "allowed: an address that starts with one of http"),
        ("ann:secret@host", "allowed: an address that starts with one of http"),
        ("http:/ann:secret@host", "allowed: an address that starts with one of http"),
        ("http://ann:secret@host:99999", "host or port is none"),
        ("http://ann:se/secret@host", "host or port is none"),
        ("http://ann:5/secret@host", "with an @ behind its host: .* write / as %2F"),
        ("https://host/?token=secret", "which goes on with \\? or #"),
        ("sqlite+nonsense:///x.db", "which cannot work"),
        ("sqlite://", "names no file"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dsecret", "cannot work: No module named 'pyodbc'"),
        ("sqlite:///{runs}/lake_painter/study.db", "a study's own database"),
    ],
)
def test_a_uri_that_can_never_work_is_said_at_once_and_without_its_password(runs, monkeypatch, uri, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(runs=runs.path))
    with pytest.raises(ValueError, match=words) as raised:
        open_tracking(runs, STUDY)
    line = str(raised.value)
    assert line.startswith("MLFLOW_TRACKING_URI is ")
    assert "secret" not in line.replace("hold a secret", "")
    check = check_tracking(runs)
    assert (check.state, check.found) == ("missing", line)


def test_a_deleted_experiment_is_said_at_once(runs):
    play(runs, open_tracking(runs, STUDY))
    client = MlflowClient(store_uri(runs))
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ValueError, match="was deleted: restore it there, purge it"):
        open_tracking(runs, STUDY)


def test_ui_shows_the_runs_of_a_sweep_and_their_images(runs):
    play(runs, open_tracking(runs, STUDY))
    run_id = run_ids(runs)["trial-0002"]
    server = Server(runs, free_port())
    try:
        server.start()
        page = requests.get(server.uri, timeout=60)
        run = requests.get(
            f"{server.uri}/ajax-api/2.0/mlflow/runs/get", {"run_id": run_id}, timeout=60
        ).json()["run"]
        image = requests.get(
            f"{server.uri}/get-artifact", {"run_uuid": run_id, "path": "story/1.png"}, timeout=60
        )
    finally:
        server.kill()
    assert "<title>MLflow</title>" in page.text
    assert (run["info"]["run_name"], run["info"]["status"]) == ("trial-0002", "FINISHED")
    assert image.content == runs.study(STUDY).trial(2).image(1).read_bytes()


ADDRESSES = (
    "http://ann:S3CRET@127.0.0.1:1",
    "http://S3CRET@127.0.0.1:1",
    "http://ann:x/S3CRET@127.0.0.1:1",
    "http:/ann:S3CRET@host",
    "ann:S3CRET@host",
    "https://127.0.0.1:1/?token=S3CRET",
    "htp://S3CRET@host",
    "http://ann:S3CRET",
    "mssql+pyodbc:///?odbc_connect=PWD%3DS3CRET",
    "sqlite:///{folder}/other.db?key=S3CRET",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_secret_of_an_address_is_told_by_anything(runs, told, monkeypatch, caplog, address):
    """Not in a log, a message, a file or a run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(folder=runs.path))
    monkeypatch.setattr(tracking_module, "END_S", 0.1)
    shutil.copy(told.tracking_db, runs.path / "other.db")
    said = [check_tracking(runs).found]
    try:
        tracking = open_tracking(runs, STUDY)
    except ValueError as error:
        said.append(str(error))
    else:
        begin(runs, tracking)
        tracking.finish_study("FINISHED")
    texts = [*said, caplog.text]
    assert not [text for text in texts if "s3cret" in text.lower()]
    assert not [path for path in runs.path.rglob("*") if path.is_file() and b"S3CRET" in path.read_bytes()]


def test_commands_and_processes_tell_no_secret(runs, cli, write_study, tmp_path):
    study = write_study(tmp_path, name=STUDY)
    shutil.copy(study, runs.study(STUDY).frozen)
    for address, shown in (
        ("http://ann:S3CRET@host:5000", "http://host:5000"),
        ("ann:S3CRET@host", "(not shown"),
    ):
        for words in (("ui",), ("status", STUDY)):
            done = cli(*words, "--runs", runs.path, MLFLOW_TRACKING_URI=address)
            assert shown in done.stdout + done.stderr
            assert "S3CRET" not in done.stdout + done.stderr


def test_a_sweep_tells_no_secret_in_words_files_params_tags_or_process_lists(
    write_study, prepared, known, tmp_path
):
    runs, store = prepared, tmp_path / "other" / "mlflow.db"
    store.parent.mkdir()
    shutil.copy(known / EMPTY_STORE, store)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}?key=S3CRET",
        "PYTHONPATH": str(ROOT),
    }
    words = ("run", write_study(tmp_path, trials=1), "--runs", runs.path)
    processes = set()
    with subprocess.Popen(
        [sys.executable, "-m", "sweep.cli", *map(str, words)],
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as driver:
        while driver.poll() is None:
            with suppress(psutil.NoSuchProcess):
                found = psutil.Process(driver.pid)
                processes |= {" ".join(each.cmdline()) for each in (found, *found.children(recursive=True))}
            time.sleep(0.5)
        told = driver.stdout.read()
    assert "trial 0" in told
    assert [line for line in processes if "sweep.worker" in line]
    assert not [text for text in (told, *processes) if "S3CRET" in text]
    client = MlflowClient(f"sqlite:///{store}")
    run = client.search_runs(
        [client.get_experiment_by_name("quick").experiment_id], "attributes.run_name = 'trial-0000'"
    )[0]
    assert run.info.status == "FINISHED"
    assert run.data.params
    for file in filter(Path.is_file, (*runs.path.rglob("*"), *store.parent.rglob("*"))):
        assert b"S3CRET" not in file.read_bytes()


def test_ui_answers_when_it_says_so_keeps_its_store_s_address_to_itself_and_ends_at_once(runs):
    server = Server(runs, free_port(), store=f"{store_uri(runs)}?key=S3CRET")
    server.start()
    assert server.process
    try:
        said = server.log.read_text()
        assert f"MLflow on {server.uri}" in said
        assert requests.get(f"{server.uri}/health", timeout=60).text == "OK"
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        assert not [word for child in children for word in child.cmdline() if "S3CRET" in word]
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 8  # 5 s and a busy machine
    finally:
        server.kill()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not [
        text
        for text in (server.log.read_text(), runs.ui_log.read_text())
        if "S3CRET" in text or "Traceback" in text
    ]


def test_ui_ends_without_a_traceback_while_it_starts(runs):
    server = Server(runs, free_port())
    server.begin()
    assert server.process
    try:
        while b"starting" not in server.log.read_bytes():
            assert server.process.poll() is None
            time.sleep(0.05)
        time.sleep(2)  # its imports take longer
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    finally:
        server.kill()
    assert "Traceback" not in server.log.read_text() + runs.ui_log.read_text()
