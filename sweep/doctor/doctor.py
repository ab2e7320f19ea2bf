"""Is this machine ready for a study? Each check has its own thread, changes nothing and may hang."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.base_models import base_model
from core.data.audit import say_bad
from core.data.folder import DataError
from core.data.hub import local_data
from core.files.install import fetch_command, install_command
from core.files.weight_files import FOLDER_VARIABLE, needed_bytes
from core.folders import Runs, shown_path
from reports.units import size
from sweep.doctor.check import Check
from sweep.doctor.gpu import check_gpu
from sweep.doctor.packages import check_packages, check_python, installed
from sweep.doctor.tracking import check_port, check_tracking
from sweep.plan.machine import cores, existing, host_memory
from sweep.plan.outlook import NoTrialPossible, look_ahead
from sweep.plan.plan import Plan, disks, make_plan
from sweep.resume.fingerprint import check_changes
from sweep.resume.lock import is_locked
from sweep.search.sqlite import StoreError
from sweep.study.errors import StudyError
from sweep.study.study import Study

LIMIT_S = 40.0
STYLES = {"OK": "green", "warn": "yellow", "missing": "bold red"}
NOT_LOOKED_AT = (
    "Not looked at: whether the weights' content is right, whether the network is there, and how long a "
    "trial takes (lora-sweep plan)."
)
Answer = TypeVar("Answer")


def examine(study: Study, runs: Runs) -> list[Check]:
    """Run all checks at once; one that gives no answer within `LIMIT_S` seconds is reported as not known."""
    plan = _ask(lambda: make_plan(study, runs))
    looks: dict[str, Callable[[], Check]] = {
        "Python": check_python,
        "packages": check_packages,
        "GPU": lambda: check_gpu(plan.result()),
        "weights": lambda: check_weights(study),
        "data": lambda: check_data(study, runs),
        "runs": lambda: check_runs(study, runs),
        "disk": lambda: check_disk(plan.result(), runs),
        "memory": lambda: check_memory(plan.result()),
        "tracking": lambda: check_tracking(runs),
        "port": check_port,
    }
    end = time.monotonic() + LIMIT_S
    asked = {name: _ask(look) for name, look in looks.items()}
    return [_answer(name, answer, end - time.monotonic()) for name, answer in asked.items()]


def is_ready(checks: Sequence[Check]) -> bool:
    """Whether the study can run here: nothing that it needs is missing. Warnings do not count."""
    return all(check.state != "missing" for check in checks)


def checks_page(study: str, checks: Sequence[Check]) -> Group:
    """The verdict, a line for each check, the files that are missing."""
    missing = [check.name for check in checks if check.state == "missing"]
    verdict = f"not ready for {study}: look at {', '.join(missing)}" if missing else f"ready for {study}"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.state, STYLES[check.state]), check.name, Text(check.found))
        if check.todo:
            table.add_row("", "", Text(f"-> {check.todo}", "bold" if check.state == "missing" else ""))
    files = [Text(f"\nmissing {check.name}:\n" + "\n".join(check.files)) for check in checks if check.files]
    return Group(Text(verdict, "bold"), Text(), table, *files, Text(f"\n{NOT_LOOKED_AT}", "dim"))


def check_weights(study: Study) -> Check:
    """Whether all files are there, by name and size; their content is verified only when they are loaded."""
    model = base_model(study.backbone)
    files, folder = model.files.FILES, model.weights_folder(study.weights)
    gone = model.files.missing_files(folder)
    if model.download is None:
        return Check(
            name="weights",
            state="missing" if gone else "OK",
            todo="install lora-sweep again" if gone else "",
            found=f"{shown_path(folder)}: {', '.join(file.path for file in gone)} missing"
            if gone
            else f"{model.name}'s, shipped with lora-sweep",
        )
    there = [found for file in files if file not in gone and (found := file.find(folder))]
    if not gone:
        return Check(
            name="weights",
            state="OK",
            found=f"all {len(there)} files, {size(sum(path.stat().st_size for path in there))}, "
            f"in {shown_path(folder)}",
        )
    fetched = f"{len(gone)} of {len(files)} files (about {size(needed_bytes(gone))})"
    return Check(
        name="weights",
        state="missing",
        found=f"{fetched} are missing in {shown_path(folder)}",
        todo=f"lora-sweep run fetches them first, or now: {fetch_command(model.download, folder)}; "
        f"{'the study key weights' if study.weights else FOLDER_VARIABLE} names another folder",
        files=tuple(f"{size(file.size_bytes) if file.size_bytes else '':>8}  {file.path}" for file in gone),
    )


def check_data(study: Study, runs: Runs) -> Check:
    """Whether the filters can keep enough images of the folder, or of a remote data set's downloaded copy."""
    source = shown_path(Path(study.data_value.source))
    try:
        local_data(study.data_value, runs.cache)
    except DataError:  # not downloaded yet
        if not installed("datasets"):
            return Check(
                name="data",
                state="missing",
                found=f"{source} needs a package that is not installed",
                todo=install_command("modelscope"),
            )
        return Check(
            name="data",
            state="OK",
            found=f"{source} is fetched when the sweep starts; the network was not tried",
        )
    try:
        outlook = look_ahead(study, runs)
    except NoTrialPossible as none:
        return Check(
            name="data",
            state="missing",
            found=str(none),
            todo="other pictures, captions or data.filters are needed",
        )
    except (ValueError, OSError) as error:
        return Check(
            name="data",
            state="missing",
            found=str(error),
            todo="put the pictures there, or change data.source",
        )
    bad = (say_bad(outlook.bad),) if outlook.bad else ()
    found = "; ".join((f"{outlook.pictures} pictures in {source}", *bad, *outlook.notes))
    return Check(name="data", state="warn" if bad or outlook.notes else "OK", found=found)


def check_runs(study: Study, runs: Runs) -> Check:
    """Can results be written, and does another driver hold the lock on this study? A mere lock file does not
    count.
    """
    nearest = existing(runs.path)
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        return Check(
            name="runs",
            state="missing",
            found=f"{runs.path} cannot be written ({error.strerror})",
            todo="choose another folder with --runs or LORA_SWEEP_RUNS",
        )
    folder = runs.study(study.name)
    if is_locked(folder):
        return Check(
            name="runs",
            state="warn",
            found=f"a driver works on {study.name} right now ({folder.lock})",
            todo="wait for it, or end it with Ctrl-C; one study has one driver",
        )
    try:
        check_changes(study, folder)
    except (StudyError, StoreError) as changed:
        return Check(
            name="runs", state="missing", found=str(changed), todo="lora-sweep run refuses it like this"
        )
    except ValueError:  # about the images, which are another check
        pass
    return Check(
        name="runs", state="OK", found=f"{runs.path} can be written; no driver is at work on {study.name}"
    )


def check_disk(plan: Plan, runs: Runs) -> Check:
    """Room for the trials under the runs folder, and for missing weights under the models folder; they may
    share a disk.
    """
    found = disks(plan, runs)
    short = [
        f"{disk.folder} has {size(disk.free_bytes)} free and needs about {size(disk.needed_bytes)}"
        for disk in found
        if disk.is_short
    ]
    if short:
        return Check(
            name="disk",
            state="missing",
            found="; ".join(short),
            todo=f"free some, or choose another disk with --runs or {FOLDER_VARIABLE}",
        )
    of_weights = (
        f" ({size(plan.fetch_bytes)} of it for weights)" if plan.fetch_bytes and len(found) == 1 else ""
    )
    return Check(
        name="disk",
        state="OK",
        found="; ".join(
            f"{size(disk.free_bytes)} free, about {size(disk.needed_bytes)} needed" for disk in found
        )
        + of_weights,
    )


def check_memory(plan: Plan) -> Check:
    """Whether the host's memory is large enough to load the model; only a warning where others use it now."""
    memory, needed = host_memory(), plan.host_bytes
    found = (
        f"{cores()} cores; {size(memory.free_bytes)} of {size(memory.total_bytes)} memory free, "
        f"about {size(needed)} needed (estimate)"
    )
    if memory.total_bytes < needed:
        return Check(
            name="memory", state="missing", found=found, todo="this machine is too small to load the model"
        )
    if memory.free_bytes < needed:
        return Check(
            name="memory", state="warn", found=found, todo="other programs hold it; end some before a sweep"
        )
    return Check(name="memory", state="OK", found=found)


def _ask(look: Callable[[], Answer]) -> "Future[Answer]":
    """Start a check in a daemon thread, which does not keep the program from ending."""
    future: Future[Answer] = Future()

    def work() -> None:
        try:
            future.set_result(look())
        except Exception as error:  # raised again where the answer is wanted
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _answer(name: str, answer: "Future[Check]", left_s: float) -> Check:
    try:
        return answer.result(timeout=max(0.0, left_s))
    except TimeoutError:
        return Check(name=name, state="warn", found=f"no answer in {LIMIT_S:g} s, so this is not known")
