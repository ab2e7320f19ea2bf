"""Where the runs folder is, and what may be done there."""

import ctypes
import errno
import fcntl
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.files.install import ROOT
from core.folders import StudyFolder
from sweep.resume.lock import is_locked, study_lock
from sweep.study.study import load_study
from tests.reports.conftest import make_study  # noqa: F401  a fixture

PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 24, 22, 38  # linux/prctl.h
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
FLOCK = {"x86_64": 73, "aarch64": 32}
Done = subprocess.CompletedProcess[str]


def command(*words: object, before: Callable[[], None] | None = None, **env: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "sweep.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=before,
        check=False,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "LORA_SWEEP"))}
        | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        | env,
    )


def obey_permissions() -> None:
    """Also as root, who may otherwise write anywhere: without these capabilities the program that follows is
    as bound as any.
    """
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def have_no_flock() -> None:
    """The kernel answers flock as on a network file system that was mounted without locks."""
    load, jump, answer = 0x20, 0x15, 0x06  # linux/filter.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    refused, allowed = 0x00050000 | errno.ENOLCK, 0x7FFF0000
    steps = [
        (load, 0, 0, 0),
        (jump, 0, 1, FLOCK[platform.machine()]),
        (answer, 0, 0, refused),
        (answer, 0, 0, allowed),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    filter_program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(program)))
    assert libc.prctl(PR_SET_SECCOMP, 2, filter_program) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755)


@pytest.fixture
def finished(make_study: Callable[..., StudyFolder]) -> StudyFolder:  # noqa: F811
    """A study that somebody else has finished, or is at work on."""
    study = make_study((6.5,), backbone="tiny")
    study.frozen.write_text(load_study("demo").to_yaml())
    with study_lock(study):
        pass
    return study


def test_a_study_that_may_only_be_read_can_be_looked_at_and_exported(
    finished: StudyFolder, tmp_path: Path
) -> None:
    runs = ("--runs", finished.path.parent)
    with read_only(finished.path.parent):
        for words in (("status",), ("status", finished.path.name)):
            done = command(*words, *runs, before=obey_permissions)
            assert (done.returncode, done.stderr) == (0, "")
            assert "not running, 1 of" in done.stdout
        done = command(
            "export",
            finished.path.name,
            "--team",
            "t",
            "--title",
            "x",
            "--out",
            tmp_path / "out",
            *runs,
            before=obey_permissions,
        )
        assert (done.returncode, done.stderr) == (0, "")
        for words in (("report", finished.path.name), ("run", "demo")):
            done = command(*words, *runs, before=obey_permissions)
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1
            assert "Permission denied" in done.stderr


def test_a_study_is_running_while_a_driver_holds_it(finished: StudyFolder) -> None:
    """Also to those who may only read it; and two who look at once see no driver."""
    words = ("status", "--runs", finished.path.parent)
    with study_lock(finished), read_only(finished.path.parent):
        assert ": running, " in command(*words, before=obey_permissions).stdout
    with finished.lock.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not is_locked(finished)


@pytest.mark.skipif(platform.machine() not in FLOCK, reason="the number of the system call is not known here")
def test_a_file_system_without_locks_is_refused_in_one_line(finished: StudyFolder) -> None:
    done = command("run", "demo", "--runs", finished.path.parent, before=have_no_flock)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert (
        "its file system cannot lock files (No locks available); choose another folder with --runs"
        in done.stderr
    )
    shown = command("status", "--runs", finished.path.parent, before=have_no_flock)
    assert "not running, 1 of" in shown.stdout, shown.stderr


@pytest.mark.parametrize("words", [("--runs=~/here",), ()])
def test_home_is_meant_where_no_shell_has_looked(words: tuple[str, ...], finished: StudyFolder) -> None:
    finished.path.parent.rename(finished.path.parent.with_name("here"))
    done = command("status", *words, HOME=str(finished.path.parent.parent), LORA_SWEEP_RUNS="~/here")
    assert "not running, 1 of" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "env", [{"LORA_SWEEP_RUNS": "~nobody-of-this-name/x"}, {"LORA_SWEEP_MODELS": "~nobody-of-this-name/x"}]
)
def test_a_home_that_is_not_known_is_one_line(env: dict[str, str]) -> None:
    done = command("doctor", "kolors_folder", **env)
    assert done.returncode == 2
    assert done.stderr == (
        "lora-sweep: ~nobody-of-this-name/x: whose home ~nobody-of-this-name is cannot be told here; "
        "write the whole path\n"
    )


@pytest.mark.parametrize("home", ["", "relative"])
def test_libraries_have_a_home_though_the_user_has_none(home: str) -> None:
    """As in a container that runs under a number without a name."""
    code = (
        "import sweep.tracking.tracking; from core.kolors.files import models_folder; print(models_folder())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": home},
    )
    assert done.stdout == "/.cache/lora-sweep/models\n", done.stderr
