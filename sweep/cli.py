"""The command line. Every command imports what it needs when it runs: `--help` starts without torch."""
import os
import re
import shlex
import shutil
import sys
import warnings
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UserError
from core.files.files import at_home
from core.folders import Runs, StudyFolder, shown_path
from sweep.process.console import err, out, steady
from sweep.process.outcome import outcome
from sweep.tracking.ui import HOST, PORT

if TYPE_CHECKING:
    from core.verdict import Verdict
    from sweep.plan.outlook import Outlook
    from sweep.study.study import Study

app = typer.Typer(
    name="lora-sweep", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Find the LoRA worth handing in: sweep its settings overnight, compare the stories, export the winner.\n\n"
         "STUDY is a study file, or the name of one in studies/ (try: lora-sweep run demo).",
)

RUNS_VARIABLE = "LORA_SWEEP_RUNS"
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in studies/.")]
RunsFolder = Annotated[Path, typer.Option("--runs", metavar="DIR", envvar=RUNS_VARIABLE, callback=at_home,
                                          help="Where results, cache and the tracking store lie.")]


def checked_device(name: str) -> str:
    """Raises UserError on one that there cannot be."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device is {name!r}, but there is no such device (allowed: auto, cpu, cuda, cuda:1)")
    return name


def _place(what: str, auto: str = "a GPU for kolors where there is one, else the CPU") -> Any:
    return typer.Option(metavar="NAME", callback=checked_device, help=f"Where to {what}: cpu, cuda, cuda:1; auto is {auto}.")


Device = Annotated[str, _place("train and render")]
ScorerDevice = Annotated[str, _place("score the pictures")]
EpochDevice = Annotated[str, _place("render and score the story of --epoch", "the kind that the trial was made on")]
PlanDevice = Annotated[str, _place("carry out the trials", "the GPU for kolors, the CPU for tiny")]
HERE, MORNING = Path("runs"), "07:00"


def main() -> None:
    steady()
    warnings.simplefilter("ignore")  # what libraries say to their developers; PYTHONWARNINGS=error would make failures of it
    line, code = outcome(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
    if line:
        _complain(line)
    sys.exit(code)


@app.command()
def run(
    study: StudyName, runs: RunsFolder = HERE,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop when this many trials are finished in all; "
                                               "default: the study's budget.")] = None,
    until: Annotated[str | None, typer.Option(metavar="HH:MM", help="Stop at this time of day, in this machine's time zone; "
                                              "start no trial that cannot finish before.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the study and say what it would cost.")] = False,
    device: Device = "auto",
    accept_change: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="Accept that this field of the study changed, "
                             "although older scores no longer compare; may be given several times.")] = None,
) -> None:
    """Start a sweep, or resume one: it is the same command."""
    from core.data.hub import bring_data
    from reports.units import duration
    from sweep.commands.status import at_edges
    from sweep.driver import run_sweep
    from sweep.progress import LiveProgress, PlainProgress
    from sweep.resume.fingerprint import fields_of
    from sweep.stop import clock, hour, stop_by_keyboard
    from sweep.study.study import load_study

    stop_by_keyboard()
    _say_not_passed_on()
    accept = fields_of(accept_change or ())
    loaded = load_study(study)
    loaded = loaded.with_trials(trials) if trials else loaded
    if dry_run:
        _check_place(loaded, runs, device)
        _print_plan(loaded, runs, until or MORNING, device, _check_start(loaded, runs, accept))
        return
    stop_at = hour(until) if until else None
    if stop_at:
        _say(f"stops at {clock(datetime.fromtimestamp(stop_at.moment))}, {duration(stop_at.left_s)} from now")
    _check_place(loaded, runs, device)
    if brought := bring_data(loaded.data_value, Runs(runs).cache):  # before the weights: smaller, and it may be refused
        _say(brought)
    outlook = _check_start(loaded, runs, accept)
    for note in outlook.notes if outlook else ():
        _say(f"note: {note}")
    _fetch_weights(loaded)
    progress = LiveProgress(out) if out.is_terminal else PlainProgress(out)
    try:
        summary = run_sweep(loaded, Runs(runs), device, progress, accept, stop_at)
    finally:
        if isinstance(progress, LiveProgress):
            progress.stop()
    winner = Runs(runs).study(loaded.name).verdict().winner
    for note in at_edges(loaded, winner):  # the other findings were said above
        _say(f"note: {note}")
    words, code = summary.closing(winner, _command(f"report {loaded.name}", runs))
    if code:
        _complain(words)
        sys.exit(code)
    _say(words)


@app.command()
def data(study: StudyName, runs: RunsFolder = HERE, device: ScorerDevice = "auto") -> None:
    """Show which pictures the filters keep, and why others go.

    Also writes a contact sheet, the audit table and a Data-Juicer recipe. Pictures that were never scored are scored.
    """
    from rich.progress import Progress

    from reports.console import data_table
    from reports.data.page import write_data_page
    from reports.data.recipe import write_recipe
    from sweep.commands.data import survey_data
    from sweep.study.study import load_study

    _say_not_passed_on()
    loaded = load_study(study)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task("looking at pictures", total=None)
        survey = survey_data(loaded, Runs(runs), device, lambda number, total: bars.update(task, completed=number, total=total))
    if survey.loaded:
        _say(survey.loaded)
    out.print(data_table(survey))
    for note in survey.notes:
        _say(f"note: {note}")
    for file, reason in survey.bad.items():
        _say(f"cannot be used: {file}: {reason}")
    for stage, files in survey.dropped().items():
        _say(f"dropped by {stage}: {files}")
    if survey.warning:
        _say(survey.warning)
    folder = Runs(runs).study(loaded.name).data
    _say(f"page       {shown_path(write_data_page(survey, folder))}")
    _say(f"recipe     {shown_path(write_recipe(survey, folder))}")


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(metavar="STUDY", help="One study; default: all of them.")] = None,
    runs: RunsFolder = HERE,
) -> None:
    """Say where a sweep stands, and what is best so far.

    Running or not, trials done, passed and failed, the best one, the time left; with STUDY its leaderboard too.
    """
    from core.folders import study_folders
    from reports.console import leaderboard_table
    from reports.leaderboard import leaderboard
    from reports.units import duration
    from sweep.commands.status import findings, study_status

    folders = [_started(study, runs)] if study else study_folders(Runs(runs))
    if not folders:
        _say(f"no study was started under {runs} yet (try: {_command('run demo', runs)})")
    for folder in folders:
        verdict = folder.verdict()
        now = study_status(folder, verdict)
        best = f", best {now.best.aesthetic_mean:.2f} (trial {now.best.spec.number})" if now.best else ""
        left = f", about {duration(now.left_s)} left" if now.left_s else ""
        out.print(f"{now.name}: {'running' if now.running else 'not running'}, {now.done} of {now.target} trials done, "
                  f"{now.passed} passed the gate, {now.failed} failed{best}{left}", markup=False, soft_wrap=True)
        if study:
            for note in now.recovered:
                _say(f"found at its last start: {note}")
            for note in findings(folder, verdict):
                _say(f"note: {note}")
            out.print(leaderboard_table(leaderboard(verdict), out.width))
            _say_where(folder, runs)


@app.command()
def plan(
    study: StudyName, runs: RunsFolder = HERE,
    until: Annotated[str, typer.Option(metavar="HH:MM", help="How many trials fit before this time of day, in this "
                                       "machine's time zone.")] = MORNING,
    device: PlanDevice = "auto",
) -> None:
    """Say what a trial costs here, and how many fit before morning.

    Time, memory and disk; estimates are marked as such.
    """
    from core.data.folder import DataError
    from core.data.hub import is_remote
    from sweep.plan.outlook import look_ahead
    from sweep.resume.fingerprint import check_changes
    from sweep.search.sqlite import StoreError
    from sweep.study.errors import StudyError
    from sweep.study.study import load_study

    loaded, outlook, refused = load_study(study, data_may_be_gone=True), None, ""
    try:
        outlook = look_ahead(loaded, Runs(runs))
        check_changes(loaded, Runs(runs).study(loaded.name))
    except (DataError, StudyError, StoreError) as error:  # what a trial costs is known all the same
        source = loaded.data_value.source
        if isinstance(error, DataError) and not is_remote(source) and Path(source).exists():
            raise
        refused = str(error)
    _print_plan(loaded, runs, until, device, outlook)
    if refused:
        _say(f"note: lora-sweep run would not start: {refused}")


@app.command()
def doctor(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The study to be ready for.")] = "demo",
    runs: RunsFolder = HERE,
) -> None:
    """Say whether this machine is ready for a study.

    Looks at GPU, versions, weights, pictures, disk, memory, tracking and port, and changes nothing; exit 1 when something
    needed is missing.
    """
    from sweep.doctor.doctor import checks_page, examine, is_ready
    from sweep.study.study import load_study

    _say_not_passed_on()
    loaded = load_study(study, data_may_be_gone=True)  # that it is gone is one of the answers
    checks = examine(loaded, Runs(runs))
    out.print(checks_page(loaded.name, checks))
    raise typer.Exit(0 if is_ready(checks) else 1)


@app.command()
def report(study: StudyName, runs: RunsFolder = HERE) -> None:
    """Write one offline page: the leaderboard and every story."""
    from reports.page import write_report
    from sweep.commands.status import findings

    _mend_places(runs)
    folder = _started(study, runs)
    verdict = folder.verdict()
    _say(f"report: {shown_path(write_report(folder, verdict, findings(folder, verdict)))}")


@app.command()
def export(
    study: StudyName,
    team: Annotated[str, typer.Option(help="Your team's name, as registered.")],
    title: Annotated[str, typer.Option(help="What to call the LoRA.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Which trial; default: the winner.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="Which epoch's LoRA, after its story was rendered and "
                                              "scored; default: the last.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default: "
                                         "exports/STUDY-TRIAL, such as exports/demo-0006.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Export even a story under the gate, or from before an accepted change; "
                                        "its model card says so.")] = False,
    runs: RunsFolder = HERE, device: EpochDevice = "auto",
) -> None:
    """Make the submission folder of the winner, or of a trial you name.

    It holds the LoRA, the story, prompts, recipe, checksums and a model card.
    """
    from reports.submission.export import export as write_export
    from sweep.commands.export import epoch_story

    _say_not_passed_on()
    folder = _started(study, runs)
    verdict = folder.verdict()
    result = verdict.winner if trial is None else folder.trial(trial).read_result()
    if result is None:
        raise UserError(f"{folder.path.name}: no story passes the gate yet; name one with --trial and --force "
                        f"({_exportable(verdict)})" if trial is None
                        else f"--trial is {trial}, but there is no such finished trial ({_exportable(verdict)})")
    source = folder.made(result)
    if epoch is not None and result.state == "complete":
        source, result = epoch_story(folder, result, epoch, Runs(runs).cache, device)
    earlier = epoch if source.path != folder.made(result).path else None
    name = f"{folder.path.name}-{result.spec.number:04d}" + (f"-epoch{earlier:02d}" if earlier else "")
    target = at_home(out_dir) if out_dir else Path("exports") / name
    made = write_export(verdict, result, source, team=team, title=title, out=target, force=force, epoch=earlier)
    which = f"{result.spec.number}, epoch {earlier}" if earlier else str(result.spec.number)
    _say(f"exported trial {which} (mean {result.aesthetic_mean:.2f}) to {shown_path(made)}")


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.", exists=True, file_okay=False)],
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="Whose scorer: tiny or kolors; default: the one that an "
                                                 "export or a trial was scored by, else tiny's.")] = None,
    device: ScorerDevice = "auto",
) -> None:
    """Score a folder of pictures, or the story of an export or a trial.

    Each picture and their mean.
    """
    from sweep.commands.score import score_folder

    _say_not_passed_on()
    score_folder(folder, backbone, device, _say, _warn)


@app.command()
def ui(
    runs: RunsFolder = HERE, port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen on; stay on loopback unless you set up authentication.")] = HOST,
) -> None:
    """Serve MLflow's own UI for the runs of all studies."""
    from sweep.tracking.ui import open_ui

    _mend_places(runs)
    open_ui(Runs(runs), host, port, _say)


def _say(line: str) -> None:
    """One line to people, whatever is in it."""
    out.print(line, markup=False, soft_wrap=True)


def _say_not_passed_on() -> None:
    from sweep.process.environment import NOT_PASSED_ON

    if NOT_PASSED_ON:
        _say(f"note: environment variables not passed on to the libraries, because the study decides: {', '.join(NOT_PASSED_ON)}")


def _warn(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def _started(study: str, runs: Path) -> StudyFolder:
    """The folder of a study that was started: by its name under `runs`, or by its file. Raises UserError."""
    from sweep.study.study import load_study

    named = Runs(runs).study(study) if study == Path(study).name else None
    if named and named.frozen.exists():
        return named
    name = load_study(study).name
    folder = Runs(runs).study(name)
    if not folder.frozen.exists():
        raise UserError(f"study {name} was not started under {runs} yet (try: {_command(f'run {study}', runs)})")
    return folder


def _exportable(verdict: "Verdict") -> str:
    """The trials that have a story; a failed one has none."""
    complete = [result.spec.number for result in verdict.results if result.state == "complete"]
    passing = {result.spec.number for result in verdict.passed}
    passed, under = (", ".join(str(number) for number in complete if (number in passing) is wanted) for wanted in (True, False))
    if not complete:
        return "allowed: none, for no trial has made a story yet"
    return f"allowed: {passed}" + f"; with --force: {under}" * bool(under) if passed else f"allowed with --force: {under}"


def _mend_places(runs: Path) -> None:
    import sqlite3

    from sweep.tracking.moved_store import mend_artifact_places

    try:
        if line := mend_artifact_places(Runs(runs)):
            _say(line)
    except sqlite3.Error as error:  # locked for long, or not MLflow's
        _warn(f"{Runs(runs).tracking_db}: cannot be read ({error}); if the folder was moved, MLflow does not find its pictures")


def _check_place(study: "Study", runs: Path, device: str) -> None:
    """What refuses a start whatever the pictures are, before anything is fetched. Raises UserError."""
    from core.base_models import base_model
    from core.files.install import fetch_command
    from sweep.plan.machine import NotKnown, refusal
    from sweep.tracking.uri import tracking_place

    tracking_place(Runs(runs))
    try:
        why = refusal(study.backbone, device, study.precision)
    except NotKnown as unknown:
        why = ""
        _say(f"note: whether {study.backbone} can train on this machine is not known ({unknown}); going on without knowing")
    if why:
        model = base_model(study.backbone)
        folder = model.weights_folder(study.weights)
        if model.download and model.files.missing_files(folder):
            why += f"; nothing was fetched ({fetch_command(model.download, folder)} does it all the same)"
        raise UserError(why)


def _check_start(study: "Study", runs: Path, accept: frozenset[str]) -> "Outlook | None":
    """What else refuses a start or should be known before it, as far as no model is needed: nothing is fetched or drawn in vain.

    Raises StudyError, StoreError, NoTrialPossible, DataError. None for a data set that is not here yet.
    """
    from core.data.hub import check_loader, is_here
    from sweep.plan.outlook import look_ahead
    from sweep.resume.fingerprint import check_changes

    if not is_here(study.data_value, Runs(runs).cache):
        check_loader(study.data_value)
        return None
    check_changes(study, Runs(runs).study(study.name), accept)
    return look_ahead(study, Runs(runs))


def _print_plan(study: "Study", runs: Path, until: str, device: str, outlook: "Outlook | None") -> None:
    from core.data.audit import say_bad
    from sweep.plan.plan import disks, make_plan
    from sweep.plan.table import plan_page
    from sweep.stop import deadline

    now = datetime.now()
    end = deadline(until, now)
    plan = make_plan(study, Runs(runs), device, outlook.unscored if outlook else 0)
    out.print(plan_page(plan, now, end, disks(plan, Runs(runs)), out.width))
    if outlook and outlook.bad:
        _say(say_bad(outlook.bad))
    for note in outlook.notes if outlook else ():
        _say(f"note: {note}")


def _fetch_weights(study: "Study") -> None:
    """Fetch what is missing before anything starts, announced and with a bar."""
    from core.base_models import base_model

    model = base_model(study.backbone)
    folder = model.weights_folder(study.weights)
    if model.download and model.files.missing_files(folder):
        import_module(model.download).fetch_with_progress(folder, out)


def _command(words: str, runs: Path) -> str:
    """A command as it must be typed here, with the runs folder of this one."""
    program = "lora-sweep" if shutil.which("lora-sweep") else shown_path(Path(sys.executable).with_name("lora-sweep"))
    elsewhere = runs != Path(os.environ.get(RUNS_VARIABLE) or HERE)
    return f"{program} {words}" + (f" --runs {shlex.quote(str(runs))}" if elsewhere else "")


def _say_where(folder: StudyFolder, runs: Path) -> None:
    from sweep.tracking.uri import shown_place

    rows = [("trials", folder.path / "trials"), ("report", folder.report), ("tracking", shown_place(Runs(runs)))]
    for word, place in rows:
        if isinstance(place, str) or place.exists():
            _say(f"{word:10}{place if isinstance(place, str) else shown_path(place)}")


def _complain(line: str) -> None:
    for each in line.splitlines():
        _warn(f"lora-sweep: {each}")


if __name__ == "__main__":
    main()
