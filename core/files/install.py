"""Commands that mend an installation, by the Python at work here: a bare `python` or `pip` may be another
environment's.
"""

import shlex
import sys
from pathlib import Path

from core.folders import shown_path

# of the source tree, or the folder that the packages are installed into
ROOT = Path(__file__).resolve().parents[2]
PROJECT, CONSTRAINTS = ROOT / "pyproject.toml", ROOT / "constraints.txt"


def python() -> str:
    """This Python for a shell in the current folder, such as `.venv/bin/python`."""
    return shlex.quote(shown_path(Path(sys.executable)))


def fetch_command(module: str, folder: Path) -> str:
    """Fetch a base model's missing weights; `module` is that model's downloader."""
    return f"{python()} -m {module} --to {shlex.quote(str(folder))}"


def install_command(extra: str = "") -> str:
    """Install lora-sweep with the versions that were tested, and with one of its optional parts."""
    part = f"[{extra}]" if extra else ""
    if not PROJECT.exists():
        return f"{python()} -m pip install --upgrade 'lora-sweep{part}'"
    return f"{python()} -m pip install -c {shlex.quote(shown_path(CONSTRAINTS))} -e {shlex.quote(shown_path(ROOT) + part)}"
