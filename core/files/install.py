"""Shell commands, for messages, that repair this installation.

They name the Python that is running: a bare `python` or `pip` may belong to another environment.
"""

import shlex
import sys
from pathlib import Path

from core.folders import shown_path

# the source tree, or the folder that the packages are installed into
ROOT = Path(__file__).resolve().parents[2]
PROJECT, CONSTRAINTS = ROOT / "pyproject.toml", ROOT / "constraints.txt"


def python() -> str:
    """The running Python, quoted for a shell in the current folder, such as `.venv/bin/python`."""
    return shlex.quote(shown_path(Path(sys.executable)))


def fetch_command(module: str, folder: Path) -> str:
    """The command that fetches a base model's missing weights; `module` is that model's downloader."""
    return f"{python()} -m {module} --to {shlex.quote(str(folder))}"


def install_command(extra: str = "") -> str:
    """The command that installs lora-sweep in its tested versions, with the optional dependencies `extra`."""
    part = f"[{extra}]" if extra else ""
    if not PROJECT.exists():
        return f"{python()} -m pip install --upgrade 'lora-sweep{part}'"
    constraints, source = shlex.quote(shown_path(CONSTRAINTS)), shlex.quote(shown_path(ROOT) + part)
    return f"{python()} -m pip install -c {constraints} -e {source}"
