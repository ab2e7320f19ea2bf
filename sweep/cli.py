"""The command line. Every command imports what it needs when it runs: `--help` starts without torch."""

import re
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from core.errors import UserError
from core.files.files import at_home
from core.folders import Runs, shown_path
from sweep.process.console import complain, out, say, say_not_passed_on, steady
from sweep.process.outcome import outcome
from sweep.start.here import HERE, RUNS_VARIABLE
from sweep.stop import MORNING
from sweep.tracking.ui import HOST, PORT

app = typer.Typer(
    name="lora-sweep",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the LoRA worth handing in: sweep its settings overnight, compare the stories, "
    "export the winner.\n\nSTUDY is a study file, or the name of one in studies/ (try: lora-sweep run demo).",
)

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in studies/.")
]
RunsFolder = Annotated[
    Path,
    typer.Option(
        "--runs",
        metavar="DIR",
        envvar=RUNS_VARIABLE,
        callback=at_home,
        help="Where results, cache and the tracking store lie.",
    ),
]


def checked_device(name: str) -> str:
    """`name` itself. Raises UserError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(
            f"--device is {name!r}, but there is no such device (allowed: auto, cpu, cuda, cuda:1)"
        )
    return name


def _place(what: str, auto: str = "a GPU for kolors where there is one, else the CPU") -> OptionInfo:
    option: OptionInfo = typer.Option(
        metavar="NAME", callback=checked_device, help=f"Where to {what}: cpu, cuda, cuda:1; auto is {auto}."
    )
    return option


Device = Annotated[str, _place("train and render")]
ScorerDevice = Annotated[str, _place("score the images")]
EpochDevice = Annotated[
    str, _place("render and score the story of --epoch", "the kind that the trial was made on")
]
PlanDevice = Annotated[str, _place("carry out the trials", "the GPU for kolors, the CPU for tiny")]


def main() -> None:
    """Run the command that sys.argv names, and exit with its code; an error is one line on stderr."""
    steady()
    # Warnings of libraries are for their developers; PYTHONWARNINGS=error would turn them into failures.
    warnings.simplefilter("ignore")
    line, code = outcome(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))
    if line:
        complain(line)
    sys.exit(code)


@app.command()
def run(
    study: StudyName,
    runs: RunsFolder = HERE,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop when this many trials are finished in all; default: the study's budget."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="HH:MM",
            help="Stop at this time of day, in this machine's time zone; "
            "start no trial that cannot finish before.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the study and say what it would cost.")
    ] = False,
    device: Device = "auto",
    accept_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Accept that this field of the study changed, "
            "although older scores no longer compare; may be given several times.",
        ),
    ] = None,
) -> None:
    """Start a sweep, or resume one: it is the same command."""
    from sweep.commands.run import run_study

    run_study(study, runs, trials, until, dry_run, device, accept_change)


@app.command()
def data(study: StudyName, runs: RunsFolder = HERE, device: ScorerDevice = "auto") -> None:
    """Show which images the filters keep, and why others go.

    Also writes a contact sheet, the audit table and a Data-Juicer config. Images that were never scored are
    scored.
    """
    from sweep.commands.data import show_data

    show_data(study, runs, device)


@app.command()
def status(
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="One study; default: all of them.")
    ] = None,
    runs: RunsFolder = HERE,
) -> None:
    """Say where a sweep stands, and what is best so far.

    Running or not, trials done, passed and failed, the best one, the time left; with STUDY its leaderboard
    too.
    """
    from sweep.commands.status import show_status

    show_status(study, runs)


@app.command()
def plan(
    study: StudyName,
    runs: RunsFolder = HERE,
    until: Annotated[
        str,
        typer.Option(
            metavar="HH:MM", help="How many trials fit before this time of day, in this machine's time zone."
        ),
    ] = MORNING,
    device: PlanDevice = "auto",
) -> None:
    """Say what a trial costs here, and how many fit before morning.

    Time, memory and disk; estimates are marked as such.
    """
    from sweep.commands.plan import plan_study

    plan_study(study, runs, until, device)


@app.command()
def doctor(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The study to be ready for.")] = "demo",
    runs: RunsFolder = HERE,
) -> None:
    """Say whether this machine is ready for a study.

    Looks at GPU, versions, weights, images, disk, memory, tracking and port, and changes nothing; exit 1
    when something needed is missing.
    """
    from sweep.doctor.doctor import checks_page, examine, missing
    from sweep.study.study import load_study

    say_not_passed_on()
    loaded = load_study(study, data_may_be_gone=True)  # missing images are one of the checks
    checks = examine(loaded, Runs(runs))
    out.print(checks_page(loaded.name, checks))
    raise typer.Exit(1 if missing(checks) else 0)


@app.command()
def report(study: StudyName, runs: RunsFolder = HERE) -> None:
    """Write one offline page: the leaderboard and every story."""
    from reports.page import write_report
    from sweep.commands.status import findings
    from sweep.start.started import mend_places, started

    mend_places(runs)
    folder = started(study, runs)
    verdict = folder.verdict()
    say(f"report: {shown_path(write_report(folder, verdict, findings(folder, verdict)))}")


@app.command()
def export(
    study: StudyName,
    team: Annotated[str, typer.Option(help="Your team's name, as registered.")],
    title: Annotated[str, typer.Option(help="What to call the LoRA.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Which trial; default: the winner.")] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Which epoch's LoRA, after its story was rendered and scored; default: the last."
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write; default: exports/STUDY-TRIAL, such as exports/demo-0006.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Export even a story under the gate, or from before an accepted change; "
            "its model card says so.",
        ),
    ] = False,
    runs: RunsFolder = HERE,
    device: EpochDevice = "auto",
) -> None:
    """Make the submission folder of the winner, or of a trial you name.

    It holds the LoRA, the story, prompts, recipe, checksums and a model card.
    """
    from sweep.commands.export import export_trial

    export_trial(study, runs, team, title, trial, epoch, out_dir, force, device)


@app.command()
def score(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of images.", exists=True, file_okay=False)
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose scorer: tiny or kolors; default: the one that an "
            "export or a trial was scored by, else tiny's.",
        ),
    ] = None,
    device: ScorerDevice = "auto",
) -> None:
    """Score a folder of images, or the story of an export or a trial.

    Each image and their mean.
    """
    from sweep.commands.score import score_folder

    say_not_passed_on()
    score_folder(folder, backbone, device)


@app.command()
def measures(
    study: StudyName,
    runs: RunsFolder = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
    device: ScorerDevice = "auto",
) -> None:
    """Say what the scores do not see: whether style, scenes and variety are there.

    First each measure goes through five gates, on stories planted from the study's own images and its base
    story: right against wrong; another seed is a tie; half of it wrong is found; PNG and JPEG change nothing;
    nor does a darker tone. Figures are shares of the way from right to wrong. Then each trial's story:
    style_gain (nearer to the style than the base model; 0: as flat), scene_kept (1: shows its scenes as the
    base model does; 0: shows any), sameness (1: eight equal images), copy_risk (1: a training image again),
    and clipped, saturation, sharpness (0: as the style). Flags are reasons to look before you believe a
    score; no measure changes one.
    """
    from sweep.commands.measures import show_measures

    show_measures(study, runs, device, as_json)


@app.command()
def ui(
    runs: RunsFolder = HERE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = PORT,
    host: Annotated[
        str, typer.Option(help="Address to listen on; stay on loopback unless you set up authentication.")
    ] = HOST,
) -> None:
    """Serve MLflow's own UI for the runs of all studies."""
    from sweep.start.started import mend_places
    from sweep.tracking.ui import open_ui

    mend_places(runs)
    open_ui(Runs(runs), host, port, say)


if __name__ == "__main__":
    main()
