"""A whole sweep through the command line, checked in Optuna, in MLflow and on the disk."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import safe_open

from core.folders import Runs, StudyFolder
from core.trial.result import Result
from core.verdict import FAILED_CONSTRAINT
from sweep.driver import SweepRefused, run_sweep
from sweep.progress import Progress
from sweep.study.errors import StudyError
from sweep.study.study import load_study
from tests.prepared import prepare


@pytest.fixture(scope="module")
def swept(tmp_path_factory, write_study, cli):
    """A fresh two-trial sweep; the tests below look at what it left."""
    folder = tmp_path_factory.mktemp("swept")
    study = write_study(folder)
    done = cli("run", study, "--runs", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, study, done


def runs_of(folder: Path, name: str = "quick") -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def trials_of(folder: Path, name: str = "quick") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=f"sqlite:///{folder}/runs/{name}/study.db", study_name=name).trials


def constraint_of(trial: optuna.trial.FrozenTrial) -> float:
    return next(value for key, value in trial.system_attrs.items() if key.endswith(":gate"))


def study_folder(folder: Path, name: str = "quick") -> StudyFolder:
    return Runs(folder / "runs").study(name)


def fingerprints(results: list[Result]) -> list[tuple]:
    """What must not differ between two runs of the same study."""
    return [(r.spec.number, r.spec.params(), r.lora_sha256, r.aesthetic, r.coherence) for r in results]


def test_every_trial_is_complete_on_the_disk(swept):
    folder = study_folder(swept[0])
    results = folder.results()
    assert [r.state for r in results] == ["complete", "complete"]
    for result in results:
        trial = folder.trial(result.spec.number)
        assert len(result.aesthetic) == 8
        assert result.aesthetic_mean == pytest.approx(sum(result.aesthetic) / 8)
        assert all(trial.image(number).stat().st_size > 0 for number in range(1, 9))
        assert trial.sheet.exists()
        assert trial.lora.read_bytes() == trial.epoch_lora(result.spec.train.epochs).read_bytes()
        assert [trial.epoch_lora(e).exists() for e in range(1, result.spec.train.epochs + 1)].count(
            False
        ) == 0


def test_optuna_was_told_the_mean_and_the_gate(swept):
    results = study_folder(swept[0]).results()
    trials = trials_of(swept[0])
    assert [t.value for t in trials] == [pytest.approx(r.aesthetic_mean) for r in results]
    assert [constraint_of(t) for t in trials] == [pytest.approx(6.0 - r.aesthetic_mean) for r in results]
    assert [t.user_attrs["gate_constraint"] for t in trials] == [constraint_of(t) for t in trials]


def test_mlflow_has_a_parent_and_a_child_for_each_trial(swept):
    runs = runs_of(swept[0])
    assert runs.keys() == {"quick", "trial-0000", "trial-0001"}
    parent = runs["quick"]
    assert parent.info.status == "FINISHED"
    assert "base_aesthetic_mean" in parent.data.metrics
    for number, result in enumerate(study_folder(swept[0]).results()):
        child = runs[f"trial-{number:04d}"]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params.keys() == result.spec.all_params().keys()
        assert child.data.tags["gate"] == ("pass" if result.passed_gate else "fail")
        assert {
            "aesthetic_mean",
            "aesthetic_min",
            "aesthetic_std",
            "coherence",
            "duration_s",
            "train_loss",
            *(f"aesthetic_{n}" for n in range(1, 9)),
        } <= child.data.metrics.keys()


def test_mlflow_has_losses_images_lora_and_recipe(swept):
    client = MlflowClient(f"sqlite:///{swept[0] / 'runs' / 'mlflow.db'}")
    child = runs_of(swept[0])["trial-0000"]
    result = study_folder(swept[0]).results()[0]
    losses = client.get_metric_history(child.info.run_id, "train_loss")
    assert [m.step for m in sorted(losses, key=lambda m: m.step)] == list(
        range(1, result.spec.train.total_steps + 1)
    )
    assert {a.path for a in client.list_artifacts(child.info.run_id)} == {
        "story.png",
        "story",
        "lora",
        "recipe.json",
    }
    assert len(client.list_artifacts(child.info.run_id, "story")) == 8
    assert [a.path for a in client.list_artifacts(child.info.run_id, "lora")] == ["lora/lora.safetensors"]


def test_an_image_that_cannot_be_used_is_named_once(swept):
    assert (
        swept[2].stdout.count(
            "note: 1 image cannot be used: 30.png (cannot be read: it is cut short or damaged)\n"
        )
        == 1
    )


def test_the_second_trial_encodes_nothing(swept):
    assert study_folder(swept[0]).results()[1].encoded == {}


def test_the_last_line_says_what_it_came_to_and_what_is_next(swept):
    assert re.search(
        r"\n2 trials finished in [\d.]+ (?:s|min), none passes the gate yet; "
        r"next: \S*lora-sweep report quick --runs " + re.escape(f"{swept[0] / 'runs'}\n"),
        swept[2].stdout,
    )


def test_a_complete_study_says_so_and_changes_nothing(swept, cli):
    folder, study, _ = swept
    before = {path: path.read_bytes() for path in (folder / "runs" / "quick").rglob("result.json")}
    done = cli("run", study, "--runs", folder / "runs", "--trials", 1)  # fewer than there are
    assert done.returncode == 0
    assert "study quick: 2 of 2 trials finished\n" in done.stdout
    assert (
        "study quick is complete: 2 trials finished, none passes the gate yet; --trials asks for more; next: "
        in done.stdout
    )
    assert {path: path.read_bytes() for path in before} == before


def test_going_on_equals_a_study_that_was_never_stopped(swept, known, tmp_path, write_study, cli):
    prepare(Runs(tmp_path / "fresh" / "runs"), known)
    shutil.copytree(
        swept[0] / "runs",
        tmp_path / "stopped" / "runs",
        ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"),
    )
    study = write_study(tmp_path)
    assert cli("run", study, "--runs", tmp_path / "stopped" / "runs", "--trials", 3).returncode == 0
    assert cli("run", study, "--runs", tmp_path / "fresh" / "runs", "--trials", 3).returncode == 0
    stopped, fresh = (study_folder(tmp_path / name).results() for name in ("stopped", "fresh"))
    assert len(stopped) == 3
    assert fingerprints(stopped) == fingerprints(fresh)
    # The store was left behind: trials that Optuna finished long ago are logged again.
    assert runs_of(tmp_path / "stopped").keys() == {"quick", "trial-0000", "trial-0001", "trial-0002"}


def test_changed_words_are_refused_by_name(swept, tmp_path, write_study, cli):
    study = write_study(tmp_path, gate=5.0)
    done = cli("run", study, "--runs", swept[0] / "runs")
    assert done.returncode == 2
    assert "objective.gate (6.0 -> 5.0)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# what is edited, and a part of the refusal; None: it goes on
EDITS: list[tuple[str, dict[str, object], str | None]] = [
    ("the seed", {"seed": 1}, "seed (0 -> 1)"),
    ("the gate", {"objective.gate": 5}, "objective.gate (6.0 -> 5.0)"),
    ("the story's title", {"story.title": "Another"}, None),
    ("a prompt", {"story.scenes.1.prompt": "a dragon"}, "story.scenes[2].prompt ("),
    ("another prompt for all", {"story.template": "ink, {scene}"}, "story.scenes[1].prompt ("),
    ("a wider range", {"space.lora_alpha": {"low": 0.5, "high": 9}}, None),
    ("a narrower range", {"space.lora_alpha": {"low": 2, "high": 3}}, None),
    (
        "a range that is logarithmic now",
        {"space.lora_alpha": {"low": 1, "high": 8, "log": True}},
        "space.lora_alpha changed",
    ),
    (
        "choices in another order",
        {"space.lora_rank": {"choices": [4, 2]}},
        "space.lora_rank changed since the study was started ([2, 4] -> [4, 2]), but Optuna never changes "
        "choices, their order or log",
    ),
    ("one choice more", {"space.lora_rank": {"choices": [2, 4, 8]}}, "([2, 4] -> [2, 4, 8])"),
    ("a setting moved from space to train", {"space.lora_alpha": ..., "train.lora_alpha": 4}, None),
    ("the same in train", {"space.lora_alpha": ..., "train.lora_alpha": 2}, "train.lora_alpha (4.0 -> 2.0)"),
    ("and back", {}, None),
    ("a setting that is fixed otherwise", {"train.batch_size": 1}, "train.batch_size (2 -> 1)"),
    ("a budget under what is done", {"budget.trials": 1}, None),
    (
        "how many are sampled at random, what is tried first",
        {"sampler.startup_trials": 9, "first": [{"lora_rank": 2}]},
        None,
    ),
    ("nothing", {}, None),
    ("name and folder", {"name": "other"}, "other/study.db: it holds study quick"),
]


def test_every_edit_between_two_runs_goes_on_or_is_refused_in_words(swept, tmp_path, monkeypatch):
    """One study, edited again and again; nothing that was made is touched."""
    from rich.console import Console

    from tests.examples import with_value

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs, written = Runs(tmp_path / "runs"), yaml.safe_load(swept[1].read_text())
    shutil.copytree(
        swept[0] / "runs",
        runs.path,
        ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", "tracked.json"),
    )
    written["story"] = yaml.safe_load(Path(written["story"]).read_text())
    made = {path.relative_to(runs.path): path.read_bytes() for path in runs.path.rglob("result.json")}
    for what, edit, refused in EDITS:
        values = written
        for path, value in edit.items():
            values = with_value(values, path, value)
        file = tmp_path / "edited.yaml"
        file.write_text(yaml.safe_dump(values))
        if "name" in edit:
            shutil.copytree(runs.path / "quick", runs.path / str(edit["name"]))
        study = load_study(str(file))
        if refused:
            with pytest.raises(StudyError, match=re.escape(refused)) as raised:
                run_sweep(study, runs, "cpu", Progress(Console(quiet=True)))
            assert len(str(raised.value).splitlines()) == 1, what
        else:
            words, code = run_sweep(study, runs, "cpu", Progress(Console(quiet=True))).closing("")
            assert (code, words.partition(",")[0]) == (0, "study quick is complete: 2 trials finished"), what
            assert ("; 1 queued trial not run, for the budget is used;" in words) == ("first" in edit), what
            assert runs.study("quick").frozen.read_text() == study.to_yaml(), what
        assert {path: (runs.path / path).read_bytes() for path in made} == made, what
        assert [trial.state.name for trial in trials_of(tmp_path)][:2] == ["COMPLETE"] * 2, what
    assert not list((runs.path / "other" / "trials").glob("aside-*"))


def test_a_second_driver_is_refused(swept, cli):
    import filelock

    folder, study, _ = swept
    with filelock.FileLock(study_folder(folder).lock):
        done = cli("run", study, "--runs", folder / "runs")
    assert done.returncode == 2
    assert "another lora-sweep" in done.stderr


def test_a_note_of_who_is_at_work_that_cannot_be_written_ends_with_one_line(tmp_path, write_study, cli):
    study_folder(tmp_path).driver.mkdir(parents=True)
    done = cli("run", write_study(tmp_path), "--runs", tmp_path / "runs")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written (Is a directory)" in done.stderr


def queue(folder: Path, **params: object) -> None:
    """As a notebook does it."""
    study = study_folder(folder)
    study.path.mkdir(parents=True, exist_ok=True)
    optuna.create_study(
        storage=f"sqlite:///{study.db}", study_name="quick", direction="maximize", load_if_exists=True
    ).enqueue_trial(params)


@pytest.mark.usefixtures("with_tables")
def test_a_trial_without_images_teaches_the_sampler_and_costs_one_trial(tmp_path, write_study, cli):
    """A repeat of its settings gets the same result at once; a queued trial that is not allowed ends with the
    reason; a space of one point ends there. The images' scores are not known before the first trial, and
    after it the start is refused.
    """
    study = write_study(tmp_path, trials=9, filters="{min_score: 0.99}")
    for value in (0.99, 0.99, "wide"):
        queue(tmp_path, min_score=value)
    words, _, rest = study.read_text().partition("space:")
    words, _, filters = words.partition("filters: {min_score: 0.99}")
    study.write_text(
        f"{words}filters: {{}}{filters}space: {{min_score: {{choices: [0.99]}}}}\n"
        f"objective:{rest.partition('objective:')[2]}"
    )
    done = cli("run", study, "--runs", tmp_path / "runs")
    assert done.returncode == 0
    assert "no_images: the filters keep 0 of 30 images" in done.stdout
    assert "all 1 point of its space tried, 3 trials finished, none passes the gate yet" in done.stdout
    log = study_folder(tmp_path).worker_log.read_text()
    assert "trial 0 failed as no_images: the filters keep 0 of 30 images, but data.min_images is 4\n" in log
    assert "Traceback" not in log
    told = [("PRUNED", "no_images", None), ("PRUNED", "no_images", 0), ("FAIL", "not_allowed", None)]
    for number, (trial, (state, reason, same_as)) in enumerate(zip(trials_of(tmp_path), told, strict=True)):
        assert (trial.state.name, constraint_of(trial)) == (state, FAILED_CONSTRAINT)
        assert (trial.user_attrs["reason"], trial.user_attrs.get("same_as")) == (reason, same_as)
        child = runs_of(tmp_path)[f"trial-{number:04d}"]
        assert child.info.status == "FAILED"
        assert (child.data.tags["state"], child.data.tags["reason"]) == ("failed", reason)
    assert trials_of(tmp_path)[2].user_attrs["message"] == (
        "min_score is 'wide', but it must be a number (allowed: 0 to 1)"
    )
    again = cli("run", study, "--runs", tmp_path / "runs")
    assert (again.returncode, again.stdout, len(trials_of(tmp_path))) == (2, "", 3)
    assert (
        "at their widest the filters keep 0 of 29 images (image_aesthetics_filter drops 29)" in again.stderr
    )


@pytest.mark.usefixtures("with_tables")
def test_filters_that_no_trial_can_pass_stop_a_sweep_at_once(tmp_path, write_study, cli):
    done = cli(
        "run", write_study(tmp_path, trials=9, filters="{min_score: 0.99}"), "--runs", tmp_path / "runs"
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert (
        "the filters keep 0 of 30 images, but data.min_images is 4, and no filter is searched" in done.stderr
    )
    assert len(trials_of(tmp_path)) == 1


class WorkerKiller(Progress):
    """Kills every worker in the middle of trial 0."""

    def epoch(self, spec, epoch, step, losses):
        import psutil

        if spec.number == 0:
            (worker,) = (p for p in psutil.Process().children() if "sweep.worker" in " ".join(p.cmdline()))
            worker.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("prepared")
def test_a_trial_that_kills_its_workers_costs_one_trial(tmp_path, write_study, monkeypatch):
    from rich.console import Console

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = load_study(str(write_study(tmp_path))).with_trials(2)
    summary = run_sweep(study, Runs(tmp_path / "runs"), "cpu", WorkerKiller(Console(quiet=True)))
    assert summary.finished == 2
    first, second = trials_of(tmp_path)
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert first.user_attrs["reason"] == "killed"
    # what status and report read
    assert [r.reason for r in study_folder(tmp_path).results()] == ["killed", None]
    child = runs_of(tmp_path)["trial-0000"]
    assert child.info.status == "FAILED"
    assert child.data.tags["message"] == "the worker was killed by SIGKILL"


@pytest.mark.usefixtures("prepared")
def test_any_setting_can_be_sampled_and_an_exact_repeat_is_answered_with_the_stored_result(
    tmp_path, write_study, cli
):
    study = write_study(tmp_path)
    words, _, space = study.read_text().partition("space:")
    only = {
        "batch_size": 3,
        "size_px": 64,
        "target_modules": "to_q,to_v",
        "random_flip": True,
        "lora_dropout": 0.1,
        "steps_per_epoch": 2,
        "steps": 1,
        "cfg_scale": 1.0,
        "epochs": 1,
        "deduplicate": "none",
    }
    words = words.replace("steps_per_epoch: 3, batch_size: 2", "lora_rank: 2").replace(
        "steps: 2, cfg_scale: 3, size_px: 128", ""
    )
    searched = "".join(f"  {name}: {{choices: [{json.dumps(value)}]}}\n" for name, value in only.items())
    study.write_text(f"{words}space:\n{searched}objective:{space.partition('objective:')[2]}")
    for _ in range(2):
        queue(tmp_path, **only)
    done = cli("run", study, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    first, second = study_folder(tmp_path).results()
    assert only.items() <= first.spec.params().items()
    assert (first.same_as, second.same_as, second.aesthetic) == (None, 0, first.aesthetic)
    with safe_open(study_folder(tmp_path).trial(0).lora, framework="pt") as lora:
        assert {key.rpartition("_to_")[2][0] for key in lora.keys()} == {"q", "v"}  # noqa: SIM118
    assert not study_folder(tmp_path).trial(1).lora.exists()
    assert runs_of(tmp_path)["trial-0001"].data.tags["same_as"] == "0"


@pytest.mark.usefixtures("with_tables")
def test_a_trial_of_an_older_version_whose_settings_are_not_allowed_any_more_fails_with_the_reason(
    tmp_path, write_study, cli
):
    folder = study_folder(tmp_path)
    folder.path.mkdir(parents=True)
    before = optuna.create_study(storage=f"sqlite:///{folder.db}", study_name="quick", direction="maximize")
    before.ask({"lora_alpha": optuna.distributions.FloatDistribution(5000, 5000)})
    done = cli("run", write_study(tmp_path), "--runs", tmp_path / "runs", "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert "trial 0 fails, for its settings are not allowed any more" in done.stdout
    (trial,) = trials_of(tmp_path)
    assert (trial.state.name, trial.user_attrs["message"]) == (
        "FAIL",
        "lora_alpha is 5000.0, but it is too large (allowed: more than 0, up to 1024)",
    )
    assert runs_of(tmp_path)["trial-0000"].info.status == "FAILED"


class CardLoser(WorkerKiller):
    """From the first death of a worker on, none can load the model any more."""

    def __init__(self, console, monkeypatch):
        super().__init__(console)
        self._monkeypatch = monkeypatch

    def epoch(self, *words):
        self._monkeypatch.setenv("LORA_SWEEP_FAIL", "load=device_lost")
        super().epoch(*words)


@pytest.mark.usefixtures("prepared")
def test_a_device_that_is_gone_for_a_fresh_worker_is_lost_and_never_another_one(
    tmp_path, write_study, monkeypatch
):
    from rich.console import Console

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = load_study(str(write_study(tmp_path))).with_trials(1)
    summary = run_sweep(study, Runs(tmp_path / "runs"), "auto", CardLoser(Console(quiet=True), monkeypatch))
    assert summary.finished == 1
    (result,) = study_folder(tmp_path).results()
    assert (result.reason, result.retried) == ("device_lost", ("killed", "device_lost"))
    assert "CUDA error" in result.message


def test_a_killed_driver_goes_on_in_the_same_trial_and_run(tmp_path, write_study, swept, cli):
    study = write_study(tmp_path)
    command = [sys.executable, "-m", "sweep.cli", "run", str(study), "--runs", str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        for line in driver.stdout:
            if line.startswith("base model's own story"):  # trial 0 is about to be asked for
                break
        events = study_folder(tmp_path).trial(0).events
        while not events.exists():
            assert driver.poll() is None
        driver.kill()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert re.search("trial 0 (has no checkpoint; it starts again|was interrupted; it resumes)", again.stdout)
    status = cli("status", "quick", "--runs", tmp_path / "runs").stdout
    assert re.search("found at its last start: trial 0 (has no|was interrupted)", status)
    assert [t.state.name for t in trials_of(tmp_path)] == ["COMPLETE", "COMPLETE"]
    assert runs_of(tmp_path).keys() == {"quick", "trial-0000", "trial-0001"}
    assert {run.info.status for run in runs_of(tmp_path).values()} == {"FINISHED"}
    # Same study, same result: in another folder, interrupted, with a cache of its own.
    assert fingerprints(study_folder(tmp_path).results()) == fingerprints(study_folder(swept[0]).results())


@pytest.mark.usefixtures("prepared")
def test_a_worker_that_cannot_start_ends_the_sweep_with_one_line(tmp_path, write_study, monkeypatch):
    from rich.console import Console

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = load_study(str(write_study(tmp_path)))
    with pytest.raises(SweepRefused, match="device is 'no-such-device', but there is no such device"):
        run_sweep(study, Runs(tmp_path / "runs"), "no-such-device", Progress(Console(quiet=True)))


def test_a_study_db_that_is_none_ends_with_one_line(tmp_path, write_study, cli):
    study = write_study(tmp_path)
    folder = study_folder(tmp_path)
    folder.path.mkdir(parents=True)
    folder.db.write_bytes(b"this is no database" * 100)
    done = cli("run", study, "--runs", tmp_path / "runs")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "its files cannot be read or written (" in done.stderr
    assert "file is not a database" in done.stderr


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("name", ["study.yaml", "fingerprint.json"])
def test_a_disk_that_is_full_for_the_driver_ends_with_one_line_and_the_next_start_goes_on(
    tmp_path, write_study, cli, name
):
    study = write_study(tmp_path, trials=1)
    done = cli("run", study, "--runs", tmp_path / "runs", LORA_SWEEP_FAIL=f"write {name}=disk_full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert cli("run", study, "--runs", tmp_path / "runs").returncode == 0


def test_result_json_reads_back_as_it_was(swept):
    folder = study_folder(swept[0])
    for result in folder.results():
        assert json.loads(folder.trial(result.spec.number).result.read_text()) == json.loads(
            json.dumps(asdict(result))
        )
