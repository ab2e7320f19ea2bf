"""Files and variables that are there for other tools do not change a sweep."""

import http.server
import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.files.files import sha256
from core.files.install import ROOT
from core.folders import Runs
from sweep.driver import other_threads
from sweep.process.environment import ordered, settle
from tests.examples import READY
from tests.prepared import prepare
from tests.sweep.process.test_places import obey_permissions
from tests.sweep.search.test_optuna_study import complete
from tests.sweep.tracking.mlflow_store import content, store_uri

# What `python` and the script that pip writes import before any line of ours runs cannot be ours to choose.
BEFORE_US = "import os, pathlib, re, runpy, sys; print(*{name.partition('.')[0] for name in sys.modules})"
NOT_OF_THE_LIBRARY = (
    "core",
    "sweep",
    "reports",
    "data",
    "utils",
    "yaml",
    "torch",
    "lightning",
    "diffsynth",
    "optuna",
    "mlflow",
)
# as pip's, in an editable install
SCRIPT = "import sys\nsys.path.append({root!r})\nfrom lora_sweep_start import main\nmain()\n"
VARIABLES = {
    "PL_TRAINER_LIMIT_TRAIN_BATCHES": "1",
    "PL_TRAINER_MAX_TIME": "00:00:00:01",
    "PL_GLOBAL_SEED": "7",
    "LT_DEVICES": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "NODE_RANK": "1",
    "MASTER_ADDR": "nowhere",
    "MASTER_PORT": "1",
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "USE_TF": "1",
    "USE_TORCH": "0",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "PYTORCH_JIT": "0",
    "PYTORCH_TUNABLEOP_ENABLED": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "MLFLOW_ENABLE_WORKSPACES": "true",
    "MLFLOW_WORKSPACE": "theirs",
    "MLFLOW_WORKSPACE_STORE_URI": "sqlite:////nowhere/w.db",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MLFLOW_EXPERIMENT_NAME": "another",
    "MLFLOW_EXPERIMENT_ID": "77",
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_REGISTRY_URI": "nonsense://x",
    "MLFLOW_RUN_CONTEXT": '{"mine": "1"}',
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_SQLALCHEMYSTORE_ECHO": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "OPTUNA_STORAGE": "sqlite:////nowhere/x.db",
    "PANDAS_FUTURE_INFER_STRING": "0",
    "HF_HUB_OFFLINE": "0",
    "HF_HOME": "/dev/null/x",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "TRANSFORMERS_OFFLINE": "0",
    "MODELSCOPE_CACHE": "/dev/null/x",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
    "FORCE_COLOR": "1",
    "CLICOLOR_FORCE": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
}


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the user's own with names that may hide one of ours: they print if they are imported."""
    folder = tmp_path_factory.mktemp("theirs")
    early = subprocess.run(
        [sys.executable, "-c", BEFORE_US], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split()
    standard = {
        name
        for name in sys.stdlib_module_names - {*early, *sys.builtin_module_names}
        if importlib.util.find_spec(name)
    }
    for name in (*standard, *NOT_OF_THE_LIBRARY):
        (folder / f"{name}.py").write_text(f"raise ImportError('the user has a {name}.py')\n")
    for name in ("core", "sweep", "reports"):
        (folder / f"{name}.py").unlink()
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('the user has a folder {name}')\n")
    return folder


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The installed command, as pip makes it."""
    script = tmp_path_factory.mktemp("bin") / "lora-sweep"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    return [sys.executable, str(script)]


def environment(**env: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW_"))}
    return clean | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | env


def run(command: list[str], folder: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(**env),
    )


@pytest.mark.parametrize(("word", "elsewhere"), [("status", False), ("doctor", False), ("status", True)])
def test_modules_of_the_user_s_own_are_in_nobody_s_way(
    word: str, elsewhere: bool, their_folder: Path, command: list[str], tmp_path: Path
) -> None:
    """In the current folder, which an empty entry of PYTHONPATH names too, or in a folder that it names."""
    done = run(
        command,
        tmp_path if elsewhere else their_folder,
        word,
        "--runs",
        tmp_path / "runs",
        PYTHONPATH=str(their_folder) if elsewhere else f"{os.pathsep}/nowhere",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the user has" not in done.stdout


def test_a_module_is_taken_from_the_users_path_where_nothing_else_has_it(their_folder: Path) -> None:
    """Clusters provide packages by PYTHONPATH."""
    (their_folder / "only_theirs.py").write_text("print('theirs')")
    done = run(
        [sys.executable, "-P"],
        ROOT,
        "-c",
        "import sweep, only_theirs",
        PYTHONPATH=f"{ROOT}{os.pathsep}{their_folder}",
    )
    assert done.stdout == "theirs\n", done.stderr


def test_a_sweep_is_the_same_among_foreign_modules_and_variables(
    their_folder: Path, command: list[str], tmp_path: Path, known: Path, write_study: Callable[..., Path]
) -> None:
    """One trial by itself, and one with all of these at once, its output read as by `head -1`."""
    starts = []
    for name in ("peace", "noise"):
        (tmp_path / name).mkdir()
        study, runs = (
            write_study(tmp_path / name, trials=1, filters="{max_images: 6}"),
            prepare(Runs(tmp_path / name / "runs"), known),
        )
        starts.append((["run", str(study), "--runs", str(runs.path)], runs))
    (words, peace), (more_words, noise) = starts

    done = run(command, tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    barred = tmp_path / "barred"
    barred.mkdir(mode=0o500)
    env = environment(**VARIABLES, PYTHONPATH=str(their_folder), HOME=str(barred), TMPDIR=str(barred))
    with subprocess.Popen(
        [*command, *more_words],
        cwd=their_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=narrow,
    ) as process:
        assert process.stdout
        note = process.stdout.readline()
        process.stdout.close()
        assert process.stderr
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert story(noise) == story(peace)
    assert {name for name in VARIABLES if name in note} >= {
        "PL_TRAINER_LIMIT_TRAIN_BATCHES",
        "MLFLOW_ENABLE_ASYNC_LOGGING",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "DNNL_MAX_CPU_ISA",
        "ATEN_CPU_CAPABILITY",
        "MKL_CBWR",
        "MLFLOW_ENABLE_WORKSPACES",
        "MLFLOW_WORKSPACE_STORE_URI",
    }
    assert "nonsense" not in note
    assert "\x1b" not in note


def narrow() -> None:
    """As on a strict cluster: few open files, umask 077, and permissions that hold for root too."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    os.umask(0o077)
    obey_permissions()


def story(runs: Runs) -> dict[str, Any]:
    """What the disk and MLflow have, without durations and times."""
    study = runs.study("quick")
    (result,) = study.results()
    losses = [json.loads(line).get("losses") for line in study.trial(0).events.read_text().splitlines()]
    held = content(store_uri(runs), "quick")
    for one in held.values():
        one["metrics"] = {
            key: [point[:2] for point in points]
            for key, points in one["metrics"].items()
            if "duration" not in key
        }
    assert held["trial-0000"]["metrics"]["aesthetic_mean"] == [(0, result.aesthetic_mean)]
    return {
        "result": (result.state, result.aesthetic, result.threads),
        "losses": losses,
        "lora": sha256(study.trial(0).lora),
        "mlflow": held,
    }


def test_no_proxy_stands_between_us_and_this_machine(tmp_path: Path) -> None:
    """For requests, which MLflow uses, and for urllib, which the doctor uses."""

    class Here(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for spared in ("", "example.org"):
            done = run(
                [sys.executable, "-P"],
                tmp_path,
                "-c",
                ASK.format(port=server.server_port),
                PYTHONPATH=str(ROOT),
                http_proxy="http://127.0.0.1:9",
                ALL_PROXY="http://127.0.0.1:9",
                NO_PROXY=spared,
            )
            assert done.stdout == "b'here' b'here'\n", done.stderr
        server.shutdown()


ASK = """
import sweep, urllib.request, requests
print(requests.get("http://127.0.0.1:{port}").content, urllib.request.urlopen("http://localhost:{port}").read())
"""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
        ({"NO_PROXY": "*"}, None),
        ({"NO_PROXY": "a.org, b.org"}, "a.org,b.org,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.org", "NO_PROXY": "b.org"}, "a.org,localhost,127.0.0.1,::1"),
    ],
)
def test_what_the_user_spared_from_the_proxy_stays_spared(given: dict[str, str], wanted: str | None) -> None:
    for _ in range(2):  # a child settles again what it inherited
        settle(given)
        assert given.get("no_proxy") == wanted


def test_variables_that_are_ours_are_named_once_and_children_name_none() -> None:
    variables = {
        "PL_TRAINER_MAX_STEPS": "3",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "True",
        "MLFLOW_TRACKING_TOKEN": "kept",
        "OMP_NUM_THREADS": "4",
    }
    assert settle(variables) == ("MLFLOW_ENABLE_ASYNC_LOGGING", "PL_TRAINER_MAX_STEPS")
    assert settle(variables) == ()
    assert (variables["MLFLOW_TRACKING_TOKEN"], variables["OMP_NUM_THREADS"]) == ("kept", "4")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "none"),
        ("run", "none", "--dry-run"),
        ("data", "none"),
        ("doctor", "none"),
        ("export", "none", "--team", "t", "--title", "t"),
        ("score", "empty"),
    ],
    ids=" ".join,
)
def test_every_command_that_computes_names_what_the_libraries_do_not_get(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = run(
        [sys.executable, "-P", "-m", "sweep.cli"],
        tmp_path,
        *words,
        PYTHONPATH=str(ROOT),
        NVIDIA_TF32_OVERRIDE="1",
    )
    (note,) = [line for line in done.stdout.splitlines() if "NVIDIA_TF32_OVERRIDE" in line]
    assert note.startswith("note: ")


def test_the_import_path_loses_nothing_and_is_settled_once() -> None:
    path = ["", "/theirs", *sys.path, "/more"]
    found = ordered(path)
    assert set(found) == {*path, str(ROOT)}
    assert found[0] == os.path.dirname(os.__file__)
    assert found.index(str(ROOT)) < found.index("/more") < found.index("/theirs")
    assert ordered(found) == found
    assert ordered(["/no/library"]) == ["/no/library"]


@pytest.mark.parametrize(
    ("before", "device", "said"),
    [
        ([], "cpu", ""),
        ([2, 2], "cpu", ""),
        ([None, None], "cpu", ""),
        ([1], "cuda:0", ""),
        ([1, 2, None, 8], "cpu", "2 threads compute now, 1 or 8 did for earlier trials"),
    ],
)
def test_another_number_of_threads_is_noted(before: list[int | None], device: str, said: str) -> None:
    results = [replace(complete(number, 5.0), threads=threads) for number, threads in enumerate(before)]
    note = other_threads(results, replace(READY, device=device))
    assert said in note
    assert bool(said) == bool(note)


def test_mlflow_s_server_imports_nothing_from_the_current_folder(their_folder: Path) -> None:
    """It is started by uvicorn, which looks there first, whatever Python's own settings are."""
    code = "import sweep, subprocess, sys; subprocess.run([sys.executable, '-m', 'uvicorn', 'data:app'])"
    done = run([sys.executable, "-P"], their_folder, "-c", code, PYTHONPATH=str(ROOT))
    assert "the user has" not in done.stderr
    assert 'Could not import module "data"' in done.stderr
