"""A remedy names the Python that it is for, from wherever it is read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.files import install
from core.files.install import ROOT


def test_commands_are_as_short_as_the_current_folder_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(install.ROOT / ".venv" / "bin" / "python"))
    monkeypatch.chdir(install.ROOT)
    assert install.install_command() == ".venv/bin/python -m pip install -c constraints.txt -e ."
    assert (
        install.install_command("modelscope")
        == ".venv/bin/python -m pip install -c constraints.txt -e '.[modelscope]'"
    )
    monkeypatch.chdir(tmp_path)
    root = install.ROOT
    assert (
        install.install_command("ray")
        == f"{root}/.venv/bin/python -m pip install -c {root}/constraints.txt -e '{root}[ray]'"
    )


def test_a_shell_finds_this_python_by_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    there = subprocess.run(
        f"{install.python()} -c 'import sys; print(sys.prefix)'",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == sys.prefix


def test_no_other_module_counts_folders_upwards_from_its_own_file() -> None:
    """It would point elsewhere, and often silently, once the module moves. What lies beside a module may be
    found so.
    """
    own = re.compile(r"Path\(__file__\)\.(with_name\(|parent /)")
    allowed = {
        "core/files/install.py",
        "sweep/process/environment.py",
        "lora_sweep_start.py",
        "tests/core/files/test_install.py",
        "tests/sweep/commands/test_third_model.py",  # starts itself as a program
    }
    counted = [
        f"{name}: {line}"
        for path in (
            *ROOT.glob("*.py"),
            *(path for room in ("core", "sweep", "reports", "tests") for path in (ROOT / room).rglob("*.py")),
        )
        if (name := path.relative_to(ROOT).as_posix()) not in allowed
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<!\w\.)__file__", own.sub("", line))
    ]
    assert counted == []
