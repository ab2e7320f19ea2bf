"""The runs folder of a command, and how the user must type the next command for it."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from core.folders import shown_path

RUNS_VARIABLE = "LORA_SWEEP_RUNS"
HERE = Path("runs")


def command(arguments: str, runs: Path) -> str:
    """A command line for the user to type: program, `arguments`, and --runs if `runs` is not the default."""
    program = (
        "lora-sweep"
        if shutil.which("lora-sweep")
        else shown_path(Path(sys.executable).with_name("lora-sweep"))
    )
    elsewhere = runs != Path(os.environ.get(RUNS_VARIABLE) or HERE)
    return f"{program} {arguments}" + (f" --runs {shlex.quote(str(runs))}" if elsewhere else "")
