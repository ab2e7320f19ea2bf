"""Start a sweep, or resume one."""

import sys
from datetime import datetime
from pathlib import Path

from core.data.hub import fetch_dataset
from core.folders import Runs
from reports.units import duration
from sweep.commands.plan import print_plan
from sweep.commands.status import at_edges
from sweep.driver import run_sweep
from sweep.process.console import complain, out, say, say_not_passed_on
from sweep.progress import LiveProgress, Progress
from sweep.resume.fingerprint import fields_of
from sweep.start.here import command
from sweep.start.start import check_place, check_start, fetch_weights
from sweep.stop import MORNING, clock, hour, stop_by_keyboard
from sweep.study.study import load_study


def run_study(
    study: str,
    runs: Path,
    trials: int | None,
    until: str | None,
    dry_run: bool,
    device: str,
    accept_change: list[str] | None,
) -> None:
    """Start or resume a sweep, with the command's options. Exits with the sweep's code unless it is 0."""
    stop_by_keyboard()
    say_not_passed_on()
    accept = fields_of(accept_change or ())
    loaded = load_study(study)
    loaded = loaded.with_trials(trials) if trials else loaded
    if dry_run:
        check_place(loaded, runs, device)
        print_plan(loaded, runs, until or MORNING, device, check_start(loaded, runs, accept))
        return
    stop_at = hour(until) if until else None
    if stop_at:
        say(f"stops at {clock(datetime.fromtimestamp(stop_at.moment))}, {duration(stop_at.left_s)} from now")
    check_place(loaded, runs, device)
    # Before the weights: it is smaller, and its checks may refuse the start.
    if brought := fetch_dataset(loaded.data.value, Runs(runs).cache):
        say(brought)
    outlook = check_start(loaded, runs, accept)
    for note in outlook.notes if outlook else ():
        say(f"note: {note}")
    fetch_weights(loaded)
    progress = LiveProgress(out) if out.is_terminal else Progress(out)
    try:
        summary = run_sweep(loaded, Runs(runs), device, progress, accept, stop_at)
    finally:
        progress.stop()
    for note in at_edges(loaded, summary.winner):  # the other findings were printed above
        say(f"note: {note}")
    line, code = summary.closing(command(f"report {loaded.name}", runs))
    if code:
        complain(line)
        sys.exit(code)
    say(line)
