"""The doctor says what is missing and what to do, changes nothing, and never hangs."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import filelock
import pytest

from core.data import hub
from core.data.folder import DataError
from core.data.hub import as_local_folder
from core.files.install import python
from core.folders import Runs
from core.kolors.files import FILES
from core.trial.spec import Training
from sweep.doctor import doctor, gpu, packages, tracking
from sweep.doctor.check import Check
from sweep.doctor.doctor import check_data, check_disk, check_runs, check_weights, examine, missing
from sweep.doctor.gpu import check_gpu
from sweep.doctor.packages import check_packages
from sweep.doctor.tracking import check_port, check_tracking
from sweep.plan.plan import make_plan
from sweep.study.space import Choices
from sweep.study.study import STUDIES, Study, load_study
from sweep.tracking.uri import TrackingPlace

NAMES = ["Python", "packages", "GPU", "weights", "data", "runs", "disk", "memory", "tracking", "port"]


@pytest.fixture
def study(tmp_path, write_study) -> Study:
    return load_study(str(write_study(tmp_path)))


@pytest.fixture
def kolors(tmp_path) -> Study:
    path = tmp_path / "watercolor.yaml"
    path.write_text(f"""
name: watercolor
backbone: kolors
story: {STUDIES}/stories/lake_painter.yaml
data: {{source: {STUDIES}/data/watercolor}}
space: {{lora_rank: {{low: 4, high: 64}}}}
""")
    return load_study(str(path))


@pytest.mark.parametrize("name", ["demo", "kolors_folder", "kolors_watercolor"])
def test_the_shipped_studies_are_examined(tmp_path, no_gpu, name):
    checks = examine(load_study(name, data_may_be_gone=True), Runs(tmp_path))
    assert list(checks) == NAMES


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Put a program of that name first on the PATH, which does this."""

    def does(commands: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{commands}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return does


@pytest.fixture
def no_gpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def server(monkeypatch) -> Iterator[Callable[..., None]]:
    """A tracking server on loopback that gives this answer; MLFLOW_TRACKING_URI names it."""
    running = []

    def answers(status: int, body: bytes, login: str | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.headers["Authorization"] == login else 401)
                self.end_headers()
                self.wfile.write(body if self.path == "/health" else b"elsewhere")

            def log_message(self, *_: object) -> None:
                pass

        running.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[0].serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{running[0].server_port}")

    yield answers
    for one in running:
        one.shutdown()
        one.server_close()


def test_the_demo_is_ready_and_nothing_was_written(cli, tmp_path):
    done = cli("doctor", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "ready for demo"
    assert [line.split()[1] for line in lines[2:] if line.startswith(("OK", "warn"))] == NAMES
    assert not (tmp_path / "runs").exists()


def test_what_is_missing_is_named_and_the_exit_is_1(cli, tmp_path, write_study):
    study = write_study(tmp_path)
    study.write_text(study.read_text().replace("data/watercolor", "data/gone"))
    (tmp_path / "file").write_text("")
    done = cli("doctor", study, "--runs", tmp_path / "file" / "runs")
    assert done.returncode == 1, done.stdout
    assert done.stdout.startswith("not ready for quick: look at data, runs\n")
    assert "Traceback" not in done.stderr


def test_a_study_that_does_not_exist_costs_one_line(cli):
    done = cli("doctor", "dmeo")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "did you mean demo?" in done.stderr


def test_kolors_without_card_and_weights_is_not_ready(tmp_path, kolors, no_gpu, monkeypatch):
    monkeypatch.setenv("LORA_SWEEP_MODELS", str(tmp_path / "models"))
    checks = examine(kolors, Runs(tmp_path / "runs"))
    assert list(checks) == NAMES
    assert {"GPU", "weights"} <= set(missing(checks))
    assert checks["GPU"].state == checks["weights"].state == "missing"
    assert "no GPU found" in checks["GPU"].found
    assert len(checks["weights"].files) == len(FILES)


def test_tiny_needs_no_card(tmp_path, study, no_gpu):
    check = check_gpu(make_plan(study, Runs(tmp_path)))
    assert (check.state, check.found) == (
        "OK",
        "no GPU found (there is no nvidia-smi): tiny runs on the CPU, Kolors needs one",
    )


def test_a_driver_that_fails_is_quoted(tmp_path, kolors, nvidia_smi):
    nvidia_smi(
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9"
    )
    check = check_gpu(make_plan(kolors, Runs(tmp_path)))
    assert check.state == "missing"
    assert "could not communicate" in check.found


def test_a_card_that_torch_cannot_use_is_no_card(tmp_path, kolors, nvidia_smi, monkeypatch):
    """The driver sees one, torch in a child process does not: hidden from it here, elsewhere a build without
    CUDA.
    """
    nvidia_smi("echo 'NVIDIA GeForce RTX 4090, 24564, 512, 550.90, [N/A]'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-another-machine")
    check = check_gpu(make_plan(kolors, Runs(tmp_path)))
    assert check.state == "missing"
    assert check.found.startswith("NVIDIA GeForce RTX 4090 with 24 GB, driver 550.90; torch ")
    assert check.found.endswith("sees no GPU it can use")


def test_a_card_that_is_hidden_is_said_to_be(tmp_path, kolors, nvidia_smi, monkeypatch):
    nvidia_smi("echo 'NVIDIA GeForce RTX 4090, 24564, 512, 550.90, [N/A]'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check_gpu(make_plan(kolors, Runs(tmp_path))).found == "CUDA_VISIBLE_DEVICES hides every GPU"


@pytest.mark.parametrize(("used_mib", "state"), [(512, "OK"), (20_000, "warn")])
def test_memory_that_another_program_holds_is_a_warning(
    tmp_path, kolors, nvidia_smi, monkeypatch, used_mib, state
):
    nvidia_smi(f"echo 'NVIDIA GeForce RTX 4090, 24564, {used_mib}, 550.90, [N/A]'")
    said = '{"version": "2", "built_for": "13.0", "well": true}\n'
    monkeypatch.setattr(gpu, "ask_torch", lambda *_, **__: subprocess.CompletedProcess([], 0, said, ""))
    assert check_gpu(make_plan(kolors, Runs(tmp_path))).state == state


def test_weights_are_looked_for_by_name_and_size(tmp_path, kolors):
    kolors = kolors.model_copy(update={"weights": str(tmp_path)})
    for file in FILES:
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).write_bytes(b"x" * 1000)
    assert check_weights(kolors) == Check("OK", f"all {len(FILES)} files, 12 kB, in {tmp_path}")
    (tmp_path / FILES[0].path).write_bytes(b"")
    check = check_weights(kolors)
    assert check.state == "missing"
    assert [file.split()[-1] for file in check.files] == [FILES[0].path]
    assert (
        f"{python()} -m core.kolors.download --to {tmp_path}; the study key weights names another folder"
        in check.todo
    )


def test_images_are_counted(study, tmp_path):
    runs = Runs(tmp_path / "runs")
    assert check_data(study, runs).found.startswith("30 images in ")
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{number}.png,words\n" for number in range(5))
    )
    own = study.model_copy(update={"data": replace(study.data, source=str(folder.parent))})
    assert check_data(own, runs).state == "missing"
    for number in range(4):
        (folder / f"{number}.png").write_bytes(b"x")
    assert check_data(own, runs).state == "missing"  # they are there, but no images
    for number in range(4):
        shutil.copy(
            STUDIES / "data" / "watercolor" / "train" / f"{number + 1:02}.png", folder / f"{number}.png"
        )
    assert check_data(own, runs).state == "warn"
    assert "4.png" in check_data(own, runs).found


@pytest.mark.parametrize(("version", "state"), [("4.0", "OK"), (None, "missing")])
def test_data_from_a_hub_is_not_looked_at_but_its_loader_is(study, monkeypatch, tmp_path, version, state):
    monkeypatch.setattr(hub, "find_spec", lambda name: version)
    own = study.model_copy(update={"data": replace(study.data, source="modelscope:someone/images")})
    runs = Runs(tmp_path / "runs")
    assert check_data(own, runs).state == state
    with pytest.raises(DataError) as not_there:
        as_local_folder(own.data.value, runs.cache)
    # as an earlier start brings it
    shutil.copytree(study.data.value.source, str(not_there.value).split(": ")[0])
    assert check_data(own, runs).found.startswith("30 images in ")


def test_a_driver_at_work_is_told_and_a_left_lock_file_is_not(tmp_path, study):
    runs = Runs(tmp_path / "runs")
    lock = filelock.FileLock(runs.study(study.name).lock)
    runs.study(study.name).path.mkdir(parents=True)
    with lock:
        assert check_runs(study, runs).state == "warn"
    assert Path(lock.lock_file).exists()
    assert check_runs(study, runs).state == "OK"


def test_a_sweep_that_needs_more_disk_than_there_is(tmp_path, study):
    huge = study.model_copy(
        update={
            "train": Training(steps_per_epoch=1),
            "space": {"epochs": Choices(choices=(1000,))},
            "budget": replace(study.budget, trials=100_000),
        }
    )
    check = check_disk(make_plan(huge, Runs(tmp_path)), Runs(tmp_path))
    assert check.state == "missing"
    assert "free and needs about" in check.found


def test_packages_out_of_range_are_named(tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["rich>=999", "no-such-package", "typer", "extra-one; extra == \'x\'"]\n'
    )
    monkeypatch.setattr(packages, "PROJECT", project)
    check = check_packages()
    assert check.state == "missing"
    assert "rich>=999 (here: " in check.found
    assert "no-such-package (here: not installed)" in check.found
    assert "typer" not in check.found
    assert "extra-one" not in check.found


def test_packages_in_range_but_never_tested_are_a_warning(tmp_path, monkeypatch):
    project, constraints = tmp_path / "pyproject.toml", tmp_path / "constraints.txt"
    project.write_text('[project]\ndependencies = ["typer", "rich"]\n')
    constraints.write_text(f"typer==0.0.1\nrich=={packages.installed('rich')}\n")
    monkeypatch.setattr(packages, "PROJECT", project)
    monkeypatch.setattr(packages, "CONSTRAINTS", constraints)
    check = check_packages()
    assert check.state == "warn"
    assert "(tested: 0.0.1)" in check.found
    assert "rich" not in check.found


def test_the_tracking_server_is_asked(server, tmp_path):
    server(200, b"OK")
    assert check_tracking(Runs(tmp_path)).state == "OK"


@pytest.mark.parametrize(("status", "body"), [(200, b"hello"), (401, b""), (500, b"")])
def test_a_server_that_answers_otherwise_is_a_warning(server, tmp_path, status, body):
    server(status, body)
    assert check_tracking(Runs(tmp_path)).state == "warn"


def test_a_server_that_is_silent_or_gone_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        assert check_tracking(Runs(tmp_path)).found.endswith("cannot be reached (timed out)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
    database = TrackingPlace(
        uri=f"postgresql://me:secret@{address}",
        kind="database",
        host="127.0.0.1",
        port=int(address.partition(":")[2]),
    )
    for check in (check_tracking(Runs(tmp_path)), tracking._check_database(database)):
        assert check.state == "missing"
        assert re.match(rf"(http|postgresql)://{address} cannot be reached", check.found)


def test_a_database_whose_driver_is_not_installed_is_missing_as_a_run_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mssql+pyodbc://me:secret@host/db")
    check = check_tracking(Runs(tmp_path))
    assert (check.state, check.found) == (
        "missing",
        "MLFLOW_TRACKING_URI is mssql+pyodbc://host/db, which cannot work: No module named 'pyodbc'",
    )


def test_a_login_in_the_address_is_used_and_not_shown(server, tmp_path, monkeypatch):
    server(200, b"OK", login="Basic bWU6c2VjcmV0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"].replace("//", "//me:secret@"))
    check = check_tracking(Runs(tmp_path))
    assert check.state == "OK"
    assert "secret" not in check.found


@pytest.mark.parametrize(
    ("uri", "state"),
    [
        ("", "OK"),
        ("sqlite:///{folder}/mlflow.db", "OK"),
        ("{folder}/mlruns", "missing"),
        ("sqlite:////no/such/folder/mlflow.db", "missing"),
        ("databricks://x", "missing"),
        ("http://127.0.0.1:port", "missing"),
    ],
)
def test_a_store_without_a_server(tmp_path, monkeypatch, uri, state):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    assert check_tracking(Runs(tmp_path)).state == state


def test_a_port_in_use_is_a_warning(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(tracking, "PORT", taken.getsockname()[1])
        assert check_port().state == "warn"


def test_what_gives_no_answer_in_time_is_told_as_unknown(tmp_path, study, nvidia_smi, monkeypatch):
    """Even a program that cannot be killed: its child keeps the pipe open."""
    nvidia_smi("sleep 4 & wait")
    monkeypatch.setattr(doctor, "LIMIT_S", 0.5)
    checks = examine(study, Runs(tmp_path))
    assert (checks["GPU"].state, checks["GPU"].found) == ("warn", "no answer in 0.5 s, so this is not known")
