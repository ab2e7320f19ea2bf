"""Commands that mend an installation, by the Python at work here: a bare `python` or `pip` may be another environment's."""
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT, CONSTRAINTS = ROOT / "pyproject.toml", ROOT / "constraints.txt"


def python() -> str:
    """This Python for a shell in the current folder, such as `.venv/bin/python`."""
    return shlex.quote(_from_here(Path(sys.executable)))


def install_command(extra: str = "") -> str:
    """Install lora-sweep with the versions that were tested, and with one of its optional parts."""
    part = f"[{extra}]" if extra else ""
    if not PROJECT.exists():
        return f"{python()} -m pip install --upgrade 'lora-sweep{part}'"
    return f"{python()} -m pip install -c {shlex.quote(_from_here(CONSTRAINTS))} -e {shlex.quote(_from_here(ROOT) + part)}"


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
