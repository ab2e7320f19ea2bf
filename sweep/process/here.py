"""Where a command works, and how the next one must be typed there."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from core.folders import shown_path

RUNS_VARIABLE = "LORA_SWEEP_RUNS"
HERE = Path("runs")


def command(words: str, runs: Path) -> str:
    """A command as it must be typed here, with the runs folder of this one."""
    program = (
        "lora-sweep"
        if shutil.which("lora-sweep")
        else shown_path(Path(sys.executable).with_name("lora-sweep"))
    )
    elsewhere = runs != Path(os.environ.get(RUNS_VARIABLE) or HERE)
    return f"{program} {words}" + (f" --runs {shlex.quote(str(runs))}" if elsewhere else "")
