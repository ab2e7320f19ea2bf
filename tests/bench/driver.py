"""One sweep, and as the last line what it cost the driver: `python -m tests.bench.driver STUDY RUNS`."""

import json
import sys
from pathlib import Path
from statistics import mean

from rich.console import Console

from core.folders import Runs
from sweep.driver import run_sweep
from sweep.progress import Progress
from sweep.study.study import load_study

summary = run_sweep(load_study(sys.argv[1]), Runs(Path(sys.argv[2])), "auto", Progress(Console()))
print(json.dumps({"cpu_s": summary.driver_cpu_s / summary.new, "idle_s": mean(summary.idle_s)}))
