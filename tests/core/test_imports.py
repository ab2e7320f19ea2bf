"""Who may import whom: the core stands alone, and looking at a study needs no torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.files.files import write_text
from core.files.install import ROOT
from core.folders import Runs
from sweep.study.study import load_study

FOREIGN = {"sweep", "reports", "optuna", "mlflow", "ray"}


def imported_names(path: Path) -> set[str]:
    """Every module that a file imports, at any depth, by its first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    paths = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", paths + code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "core").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_core_imports_neither_its_users_nor_their_trackers(path: Path) -> None:
    assert imported_names(path) & FOREIGN == set()


def test_reports_do_not_import_the_sweep_s_trackers() -> None:
    for path in (ROOT / "reports").rglob("*.py"):
        assert not imported_names(path) & {"optuna", "mlflow", "sweep"}, path


@pytest.mark.parametrize(
    "module", ["sweep.driver", "reports.page", "reports.submission.export", "reports.console"]
)
def test_the_driver_and_what_people_look_at_need_no_torch(module: str) -> None:
    done = python(f"import {module}; print(sorted({{'torch', 'diffsynth', 'lightning'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("word", "written"), [(None, False), ("false", True)])
def test_mlflow_tells_nobody_of_its_use_unless_the_user_wants_it(
    tmp_path: Path, word: str | None, written: bool
) -> None:
    """Its telemetry notes what it did in the user's folder; where the tests run, it would be silent by
    itself.
    """
    env = {"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    env |= {"MLFLOW_DISABLE_TELEMETRY": word} if word else {}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import sweep.tracking.tracking"],
        cwd=ROOT,
        env=env,
        check=True,
        timeout=120,
    )
    assert (tmp_path / "mlflow" / "telemetry.json").exists() == written


def test_every_module_of_the_core_imports_where_optuna_and_mlflow_are_missing() -> None:
    done = python("""
sys.modules |= {"optuna": None, "mlflow": None}
import importlib, pkgutil, core
names = [module.name for module in pkgutil.walk_packages(core.__path__, "core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
""")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 18


@pytest.mark.parametrize(
    "module",
    [
        "base_models",
        "trial.spec",
        "files.files",
        "folders",
        "verdict",
        "data.filters",
        "files.cache",
        "data.audit",
        "story.sheet",
    ],
)
def test_what_reports_read_with_needs_no_torch(module: str) -> None:
    done = python(
        f"import core.{module}; print(sorted({{'torch', 'transformers', 'mlflow'}} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "words", ["--help", "run --help", "status", "status demo", "report demo", "plan demo", "doctor demo"]
)
def test_looking_needs_neither_torch_nor_optuna_nor_mlflow(words: str, tmp_path: Path) -> None:
    write_text(Runs(tmp_path / "runs").study("demo").frozen, load_study("demo").to_yaml())
    done = python(
        """
import atexit
heavy = {"torch", "optuna", "mlflow", "diffsynth", "lightning"}
atexit.register(lambda: print("LOADED", sorted(heavy & set(sys.modules))))
sys.argv[0] = "lora-sweep"
from sweep.cli import main
main()
""",
        *words.split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
