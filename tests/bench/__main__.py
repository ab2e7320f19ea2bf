"""`make bench`: what the product costs, as ratios measured in one run on one machine. Prints a table."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from core.files.files import write_json
from core.files.install import ROOT
from core.folders import Runs
from core.trial.result import Result

LORA_SWEEP = [sys.executable, "-m", "sweep.cli"]
TRIALS = 3
MANY = 500
STUDY = """
name: bench
story: {root}/studies/stories/lake_painter.yaml
data: {{source: {data}, caption: "{{prompt}}, watercolor style", filters: {{min_score: 0.0}}}}
train: {{steps_per_epoch: 40, batch_size: 6, epochs: 4, lora_rank: 8, lora_alpha: 8}}
render: {{steps: 18, cfg_scale: 3, size_px: 128}}
space: {{learning_rate: {{low: 1.0e-3, high: 2.0e-3}}}}
budget: {{trials: {trials}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        study = work / "bench.yaml"
        data = _readable_data(work / "data")
        study.write_text(STUDY.format(root=ROOT, data=data, trials=TRIALS), encoding="utf-8")
        help_s = min(_seconds([*LORA_SWEEP, "--help"])[0] for _ in range(3))
        sweep_s, printed = _seconds(
            [sys.executable, "-m", "tests.bench.driver", str(study), str(work / "runs")]
        )
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        results = Runs(work / "runs").study("bench").results()
        spec = Runs(work / "runs").study("bench").trial(TRIALS - 1).spec
        _, naive_out = _seconds([sys.executable, "-m", "tests.bench.naive", str(spec), str(data)])
        naive = json.loads(naive_out.splitlines()[-1])
        many_s = _load_many(study, Runs(work / "runs"))
        demo_s, _ = _seconds([*LORA_SWEEP, "run", "demo", "--runs", str(work / "demo")])
        _print(help_s, sweep_s, demo_s, printed, peak_gb, results, naive, many_s)


def _load_many(study_file: Path, runs: Runs) -> tuple[float, float]:
    """Fill the study up to MANY finished trials, copies of the last -> seconds of a start that finds it
    complete, of `status`.
    """
    folder = runs.study("bench")
    study = optuna.load_study(storage=f"sqlite:///{folder.db}", study_name="bench")
    last, result = study.trials[-1], asdict(folder.results()[-1])
    for number in range(len(study.trials), MANY):
        study.add_trial(
            optuna.trial.create_trial(
                params=last.params,
                distributions=last.distributions,
                value=last.value,
                user_attrs=last.user_attrs,
                system_attrs=last.system_attrs,
            )
        )
        write_json(folder.trial(number).result, result | {"spec": result["spec"] | {"number": number}})
    start = [*LORA_SWEEP, "run", str(study_file), "--runs", str(runs.path), "--trials", str(MANY)]
    _seconds(start)  # this start logs them to MLflow
    return _seconds(start)[0], _seconds([*LORA_SWEEP, "status", "bench", "--runs", str(runs.path)])[0]


def _print(
    help_s: float,
    sweep_s: float,
    demo_s: float,
    printed: str,
    peak_gb: float,
    results: list[Result],
    naive: dict[str, float],
    many_s: tuple[float, float],
) -> None:
    later = results[1:]  # the first fills the cache
    trial_s = sum(r.duration_s for r in later) / len(later)
    train_s, render_s = (sum(r.timings_s[part] for r in later) / len(later) for part in ("train", "render"))
    driver = json.loads(printed.splitlines()[-1])
    table = Table("figure", "here", "aim")
    for row in (
        ("a trial against the naive way", _ratio(trial_s, naive["total"]), ">= 3x"),
        ("  its training alone", _ratio(train_s, naive["train"]), ""),
        ("  its eight images alone", _ratio(render_s, naive["render"]), ""),
        ("driver's own CPU per trial", f"{driver['cpu_s']:.2f} s", "< 0.4 s"),
        ("worker idle between trials", f"{driver['idle_s']:.2f} s", "< 0.2 s"),
        ("--help", f"{help_s:.2f} s", "< 1.5 s"),
        ("peak memory of one process", f"{peak_gb:.2f} GB", "< 3 GB"),
        (f"a start with {MANY} finished trials", f"{many_s[0]:.1f} s", ""),
        (f"status with {MANY} finished trials", f"{many_s[1]:.1f} s", ""),
        (f"{TRIALS} trials of 160 steps, start to end", f"{sweep_s:.0f} s", ""),
        ("the demo's eight trials, start to end", f"{demo_s:.0f} s", "< 300 s"),
    ):
        table.add_row(*row)
    Console().print(table)


def _ratio(ours_s: float, theirs_s: float) -> str:
    return f"{theirs_s / ours_s:.1f}x ({ours_s:.1f} s against {theirs_s:.1f} s)"


def _readable_data(folder: Path) -> Path:
    """The demo's images without the broken file, on which DiffSynth's own data set would stop."""
    shutil.copytree(ROOT / "studies" / "data" / "watercolor", folder)
    table = folder / "train" / "metadata.csv"
    rows = table.read_text(encoding="utf-8-sig").splitlines()
    table.write_text(
        "\n".join(row for row in rows if not row.startswith("30.png")) + "\n", encoding="utf-8-sig"
    )
    return folder


def _seconds(command: list[str]) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started, done.stdout


if __name__ == "__main__":
    main()
