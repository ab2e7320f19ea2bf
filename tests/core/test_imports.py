"""Who may import whom: the core stands alone, and looking at a study needs no torch."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
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
    return subprocess.run([sys.executable, "-c", paths + code, *arguments], cwd=cwd, capture_output=True, text=True,
                          encoding="utf-8", timeout=120)


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_neither_its_users_nor_their_trackers(path: Path) -> None:
    assert imported_names(path) & FOREIGN == set()


def test_reports_do_not_import_the_sweep_s_trackers() -> None:
    for path in (ROOT / "reports").rglob("*.py"):
        assert not imported_names(path) & {"optuna", "mlflow"}, path


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


@pytest.mark.parametrize("module", ["settings", "files", "folders", "gate", "filters", "cache", "dataset", "sheet"])
def test_what_reports_read_with_needs_no_torch(module: str) -> None:
    done = python(f"import core.{module}; print(sorted({{'torch', 'transformers', 'mlflow'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("words", [["--help"], ["status"], ["run", "--help"], ["plan", "demo"], ["doctor"]])
def test_looking_needs_neither_torch_nor_mlflow(words: list[str], tmp_path: Path) -> None:
    done = python("""
import atexit
atexit.register(lambda: print("LOADED", sorted({"torch", "mlflow", "diffsynth", "lightning"} & set(sys.modules))))
sys.argv[0] = "lora-sweep"
from sweep.cli import main
main()
""", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
