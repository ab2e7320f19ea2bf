"""The command line. Every command imports what it needs when it runs: `--help` starts without torch."""
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.exceptions
from rich.console import Console

from core.folders import Runs, StudyFolder
from sweep.tracking_uri import VARIABLE, masked, tracking_uri

app = typer.Typer(
    name="lora-sweep", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Find the LoRA worth handing in: sweep its settings overnight, compare the stories, export the winner.\n\n"
         "STUDY is a study file, or the name of one in studies/ (try: lora-sweep run demo).",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 104  # a log or a pipe has no edge to fold at

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in studies/.")]
RunsFolder = Annotated[Path, typer.Option("--runs", metavar="DIR", envvar="LORA_SWEEP_RUNS",
                                          help="Where results, cache and the tracking store lie.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to train and render: cpu, cuda, cuda:1; auto is a GPU "
                                          "for kolors where there is one, else the CPU.")]
HERE = Path("runs")


def main() -> None:
    """Exit 0 done, 1 it failed, 2 the words were wrong (one line on stderr), 130 interrupted and resumable."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries say to their developers
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
        if code == 130:  # typer 0.29 answers Ctrl-C with this number and no word
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on from here", 130)
    except typer.exceptions.TyperException as error:
        _fail(" ".join(error.format_message().split()), 2)
    except ValueError as error:  # StudyError, ExportError: the user's words
        if type(error).__module__.split(".")[0] not in ("sweep", "reports", "core", "builtins"):
            raise
        _fail(str(error), 2)
    except RuntimeError as error:
        if type(error).__module__ not in ("sweep.driver", "sweep.supervisor", "sweep.lock", "sweep.storage",
                                          "core.kolors.download"):
            raise
        _fail(str(error), 2 if type(error).__name__ in ("StudyBusy", "SweepRefused") else 1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)


@app.command()
def run(
    study: StudyName, runs: RunsFolder = HERE,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop when this many trials are told in all; "
                                               "default: the study's budget.")] = None,
    until: Annotated[str | None, typer.Option(metavar="HH:MM", help="Stop at this time of day; start no trial that cannot finish "
                                              "before.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the study and say what it would cost.")] = False,
    device: Device = "auto",
    accept_change: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="Go on although this field changed, and "
                             "scores no longer compare; repeatable.")] = None,
) -> None:
    """Start a sweep, or go on with one; safe to repeat after anything."""
    from core.hub_data import bring_data
    from reports.table import winner
    from sweep.deadline import hour
    from sweep.driver import run_sweep
    from sweep.fingerprint import fields_of
    from sweep.progress import LiveProgress, PlainProgress
    from sweep.stop import stop_by_keyboard
    from sweep.study import load_study

    stop_by_keyboard()
    accept = fields_of(accept_change or ())
    loaded = load_study(study)
    if dry_run:
        plan(study, runs, until=until or "07:00", device=device)
        return
    stop_at = hour(until) if until else None
    if brought := bring_data(loaded.data_value, Runs(runs).cache):  # before the weights: smaller, and it may be refused
        out.print(brought, markup=False, soft_wrap=True)
    if loaded.backbone == "kolors":
        _fetch_weights(loaded.weights)
    progress = LiveProgress(out) if out.is_terminal else PlainProgress(out)
    try:
        summary = run_sweep(loaded, Runs(runs), trials or loaded.budget.trials, device, progress, accept, stop_at)
    finally:
        if isinstance(progress, LiveProgress):
            progress.stop()
    if stop_at and summary.stopped == stop_at.name:
        best = winner(Runs(runs).study(loaded.name))
        said = f"best {best.aesthetic_mean:.2f} (trial {best.spec.number})" if best else "none passes the gate yet"
        out.print(f"stopped at {stop_at.name}: {summary.new} trials in {summary.wall_s:.0f} s, {summary.told} in all, {said}; "
                  "the same command goes on", soft_wrap=True)
        return
    if summary.stopped:
        _fail(f"stopped by {summary.stopped} after {summary.told} trials; everything is kept, the same command goes on", 130)
    if not summary.new:
        out.print(f"study {loaded.name} is complete: {summary.told} trials told, nothing left to do")
        return
    idle = f", the worker waited {sum(summary.idle_s) / len(summary.idle_s):.2f} s between trials" if summary.idle_s else ""
    out.print(f"{summary.new} trials in {summary.wall_s:.0f} s; the driver took {summary.driver_cpu_s / summary.new:.2f} s "
              f"of CPU per trial{idle}", soft_wrap=True)


@app.command()
def data(study: StudyName, runs: RunsFolder = HERE, device: Device = "auto") -> None:
    """Which pictures each filter keeps, and why the others go."""
    from rich.progress import Progress

    from reports.console import data_table
    from reports.data_page import write_data_page
    from reports.data_recipe import write_recipe
    from sweep.data_survey import survey_data
    from sweep.study import load_study

    loaded = load_study(study)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task("looking at pictures", total=None)
        survey = survey_data(loaded, Runs(runs), device, lambda number, total: bars.update(task, completed=number, total=total))
    if survey.loaded:
        out.print(survey.loaded, markup=False, soft_wrap=True)
    out.print(data_table(survey))
    for file, reason in survey.bad.items():
        out.print(f"cannot be used: {file}: {reason}", markup=False, soft_wrap=True)
    if survey.warning:
        out.print(survey.warning, markup=False, soft_wrap=True)
    folder = Runs(runs).study(loaded.name).data
    out.print(f"page       {write_data_page(survey, folder)}", markup=False, soft_wrap=True)
    out.print(f"recipe     {write_recipe(survey, folder)}", markup=False, soft_wrap=True)


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="One study; default: all of them.")] = None,
    runs: RunsFolder = HERE,
) -> None:
    """Where it stands: running, done, passed, failed, best so far, time left; with STUDY its leaderboard."""
    from reports.console import duration, leaderboard_table
    from reports.table import leaderboard
    from sweep.status import study_folders, study_status

    folders = [_started(study, runs)] if study else study_folders(Runs(runs))
    if not folders:
        out.print(f"no study was started under {runs} yet (try: lora-sweep run demo)")
    for folder in folders:
        now = study_status(folder)
        best = f"best {now.best.aesthetic_mean:.2f} (trial {now.best.spec.number})" if now.best else "none passes the gate yet"
        left = f", about {duration(now.left_s)} left" if now.left_s else ""
        out.print(f"{now.name}: {'running' if now.running else 'not running'}, {now.done} of {now.target} trials done, "
                  f"{now.passed} passed the gate, {now.failed} failed, {best}{left}", markup=False, soft_wrap=True)
        if study:
            for note in now.recovered:
                out.print(f"at its last start, {note}", markup=False, soft_wrap=True)
            out.print(leaderboard_table(leaderboard(folder), out.width))
            _say_where(folder, runs)


@app.command()
def plan(
    study: StudyName, runs: RunsFolder = HERE,
    until: Annotated[str, typer.Option(metavar="HH:MM", help="How many trials fit before this time.")] = "07:00",
    device: Device = "auto",
) -> None:
    """What a trial costs here (time, memory, disk), and how many fit before morning."""
    from datetime import datetime

    from sweep.deadline import deadline
    from sweep.machine import free_disk_bytes
    from sweep.plan import make_plan
    from sweep.plan_table import plan_page
    from sweep.study import load_study

    now = datetime.now()
    end = deadline(until, now)
    made = make_plan(load_study(study, data_may_be_gone=True), Runs(runs), device)
    out.print(plan_page(made, now, end, free_disk_bytes(runs), out.width))


@app.command()
def doctor(
    study: Annotated[str, typer.Argument(metavar="[STUDY]", help="The study to be ready for; default: demo.")] = "demo",
    runs: RunsFolder = HERE,
) -> None:
    """Is this machine ready: GPU, versions, weights, disk, ports; exit 1 when something needed is missing."""
    from sweep.doctor import checks_page, examine, is_ready
    from sweep.study import load_study

    loaded = load_study(study, data_may_be_gone=True)  # that it is gone is one of the answers
    checks = examine(loaded, Runs(runs))
    out.print(checks_page(loaded.name, checks))
    raise typer.Exit(0 if is_ready(checks) else 1)


@app.command()
def report(study: StudyName, runs: RunsFolder = HERE) -> None:
    """Write the study's report, one offline page: leaderboard and every story."""
    from reports.page import write_report

    out.print(f"report: {write_report(_started(study, runs))}", soft_wrap=True, markup=False)


@app.command()
def export(
    study: StudyName,
    team: Annotated[str, typer.Option(help="Your team's name, as registered.")],
    title: Annotated[str, typer.Option(help="What to call the LoRA.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Which trial; default: the winner.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="Which epoch's checkpoint, rendered and judged anew; "
                                              "default: the last.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to; default: exports/STUDY-TRIAL.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Export a story under the gate all the same; its card says so.")] = False,
    runs: RunsFolder = HERE, device: Device = "auto",
) -> None:
    """Make the submission folder: LoRA, story, prompts, recipe, checksums, model card."""
    from reports.export import export as write_export
    from reports.table import winner
    from sweep.checkpoint import epoch_story

    folder = _started(study, runs)
    result = winner(folder) if trial is None else folder.trial(trial).read_result()
    if result is None:
        numbers = ", ".join(str(r.spec.number) for r in folder.results())
        raise ValueError(f"{folder.path.name}: no story passes the gate yet; name one with --trial and --force" if trial is None
                         else f"--trial is {trial}, but there is no such finished trial (allowed: {numbers})")
    source = folder.made(result)
    if epoch is not None and result.state == "complete":
        source, result = epoch_story(folder, result, epoch, Runs(runs).cache, device)
    target = out_dir or Path("exports") / f"{folder.path.name}-{result.spec.number:04d}"
    last = folder.made(result)
    made = write_export(folder, result, source, team=team, title=title, out=target, force=force,
                        epoch=epoch if source.path != last.path else None)
    out.print(f"exported trial {result.spec.number} (mean {result.aesthetic_mean:.2f}) to {made}", soft_wrap=True, markup=False)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.", exists=True, file_okay=False)],
    backbone: Annotated[str, typer.Option(help="Whose scorer: tiny or kolors.")] = "tiny", device: Device = "auto",
) -> None:
    """The mean aesthetic score of any folder of pictures."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp"))
    if not files:
        raise ValueError(f"{folder}: holds no picture (allowed: png, jpg, jpeg, webp, bmp)")

    from core.backbone import load_backbone
    from core.picture import PictureError, open_picture
    from core.score import score_pictures

    loaded = load_backbone(backbone, device, "fp32", parts=["scorer"])
    good = []
    for path in files:
        try:
            good.append((path, open_picture(path)))
        except PictureError as error:
            err.print(f"{path}: left out, {error}", markup=False, soft_wrap=True)
    if not good:
        raise ValueError(f"{folder}: none of its {len(files)} pictures can be read")
    result = score_pictures(loaded, [picture for _, picture in good])
    for (path, _), value in zip(good, result.aesthetic, strict=True):
        out.print(f"{value:6.3f}  {path.name}", markup=False, soft_wrap=True)
    out.print(f"{result.mean:6.3f}  mean of {len(good)} by {loaded.scorer_name}; coherence {result.coherence:.3f}")


@app.command()
def ui(
    runs: RunsFolder = HERE, port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="Stay on loopback unless you set up authentication.")] = "127.0.0.1",
) -> None:
    """MLflow's own UI on the right store."""
    uri = os.environ.get(VARIABLE)
    if uri and uri.startswith("http"):
        out.print(f"your tracking server is {masked(uri)}: open it in a browser", markup=False)
        return
    if not uri and not Runs(runs).tracking_db.exists():
        raise ValueError(f"{runs}: holds no tracking store yet (try: lora-sweep run demo)")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"--port is {port}, but {host}:{port} cannot be used ({error.strerror}); choose another") from None

    # By the environment, for a command line is public and the URI may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(Runs(runs))
    out.print(f"MLflow on http://{host}:{port} (Ctrl-C ends it)", markup=False)
    command = [sys.executable, "-m", "mlflow", "server", "--artifacts-destination", str(Runs(runs).artifacts.resolve()),
               "--host", host, "--port", str(port), "--workers", "1"]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # the server takes this process over, and its signals with it


def _started(study: str, runs: Path) -> StudyFolder:
    """The folder of a study that was started: by its name under `runs`, or by its file. Raises ValueError."""
    from sweep.study import load_study

    named = Runs(runs).study(study) if study == Path(study).name else None
    if named and named.frozen.exists():
        return named
    name = load_study(study).name
    folder = Runs(runs).study(name)
    if not folder.frozen.exists():
        raise ValueError(f"study {name} was not started under {runs} yet (try: lora-sweep run {study})")
    return folder


def _fetch_weights(written: str | None) -> None:
    """Fetch what is missing before anything starts, announced and with a bar."""
    from core.kolors.files import missing_files, models_folder

    folder = models_folder(written or "")
    if missing_files(folder):
        from core.kolors.download import fetch_with_progress

        fetch_with_progress(folder, out)


def _say_where(folder: StudyFolder, runs: Path) -> None:
    rows: list[tuple[str, Any]] = [("trials", folder.path / "trials"), ("report", folder.report),
                                   ("tracking", masked(os.environ.get(VARIABLE, "")) or Runs(runs).tracking_db)]
    for word, place in rows:
        if isinstance(place, str) or place.exists():
            out.print(f"{word:10}{place}", markup=False, soft_wrap=True)


def _fail(line: str, code: int) -> None:
    err.print(f"lora-sweep: {line}", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
