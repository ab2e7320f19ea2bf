"""A command does its work wherever its output goes, also if nobody reads it any more."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.files.install import ROOT

PLAN = [sys.executable, "-m", "sweep.cli", "plan", "demo"]
# Output of ours, of a library, and of the log, more than a pipe holds, and then the work.
PROGRAM = """
import logging
from sweep.process.console import err, out, steady
steady()
for words in range(200):
    out.print("to standard output", 500 * "x", soft_wrap=True)
    err.print("to standard error", 500 * "x", soft_wrap=True)
    print("by a library")
    logging.warning("to the log")
open("done", "w").close()
"""


def plan(folder: Path, shell: str = '"$@"', **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", shell, "sh", *PLAN, "--runs", str(folder / "runs")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | env,
        check=False,
    )


def test_a_character_that_does_not_fit_is_escaped(
    tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = cli("status", "--runs", tmp_path / "蓝队", PYTHONIOENCODING="ascii")
    assert done.stdout.startswith(f"no study was started under {tmp_path}/\\u84dd\\u961f yet (try: "), (
        done.stderr
    )
    table = plan(tmp_path, PYTHONIOENCODING="ascii:strict").stdout
    assert "+----" in table  # a frame of characters that there are
    assert "\\u2500" not in table


@pytest.mark.parametrize("taken", [">&- 2>&- <&-", "> /dev/full 2> /dev/full"], ids=["closed", "full"])
def test_a_command_ends_well_though_nobody_takes_its_words(taken: str, tmp_path: Path) -> None:
    done = plan(tmp_path, f'"$@" {taken}')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_never_becomes_the_output_that_was_closed(tmp_path: Path) -> None:
    program = (
        "import os; from sweep.process.console import steady; steady(); "
        "f = open('kept', 'w'); os.write(1, b'x'); os.write(2, b'x')"
    )
    subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&- <&-', "sh", sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "kept").read_bytes() == b""


def test_work_goes_on_after_the_reader_has_left(tmp_path: Path) -> None:
    """As under `| head -1`, for both streams and whoever writes to them."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    for pipe in (process.stdout, process.stderr):
        assert pipe
        assert pipe.readline().startswith("to standard")
        pipe.close()
    assert process.wait(120) == 0
    assert (tmp_path / "done").exists()


def test_colours_are_for_terminals_only(tmp_path: Path) -> None:
    """Whatever notebooks and CI set for all their children."""
    assert "\x1b" not in plan(tmp_path, FORCE_COLOR="1", CLICOLOR_FORCE="1", TTY_COMPATIBLE="1").stdout


def test_a_terminal_has_colours(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from sweep.process.console import out, steady; steady(); out.print('[bold]x')",
        ],
        stdout=theirs,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
        check=True,
    )
    assert done.returncode == 0
    assert os.read(ours, 100) == b"\x1b[1mx\x1b[0m\r\n"
    os.close(ours)
    os.close(theirs)


@pytest.mark.usefixtures("prepared")
def test_a_notebook_s_interrupt_ends_as_ctrl_c_does(tmp_path: Path, write_study: Callable[..., Path]) -> None:
    """It goes to the whole process group, the children that are there included."""
    words = [
        sys.executable,
        "-m",
        "sweep.cli",
        "run",
        str(write_study(tmp_path)),
        "--runs",
        str(tmp_path / "runs"),
    ]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"},
    ) as process:
        assert process.stdout
        first = next(line for line in process.stdout if line.startswith("study "))  # it is at work
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    *earlier, last = errors.splitlines()
    assert (process.returncode, last) == (
        130,
        "lora-sweep: stopped by SIGINT after 0 trials; everything is kept, the same command goes on",
    ), errors
    assert all(line.startswith("MLflow ") for line in earlier)  # where it had no time to take all
    assert "\x1b" not in first


def test_an_interrupt_before_the_command_has_begun_leaves_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# Ctrl-C in the middle of our first imports.
INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
from lora_sweep_start import main
main()
"""
