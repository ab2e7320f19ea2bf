"""Is this machine ready for a study? Each check has its own thread, changes nothing and may hang."""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.base_models import base_model
from core.data.audit import say_bad
from core.data.caption_table import DataError
from core.data.hub import check_loader, is_here
from core.files.install import fetch_command
from core.files.weight_files import FOLDER_VARIABLE, needed_bytes
from core.folders import Runs, shown_path
from reports.units import size
from sweep.doctor.check import Check
from sweep.doctor.gpu import check_gpu
from sweep.doctor.packages import check_packages, check_python
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


def examine(study: Study, runs: Runs) -> dict[str, Check]:
    """Run all checks at once, by name; one that gives no answer within `LIMIT_S` seconds is reported as not
    known.
    """
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
    return {name: _answer(answer, end - time.monotonic()) for name, answer in asked.items()}


def missing(checks: Mapping[str, Check]) -> list[str]:
    """What the study needs and lacks here, by name; warnings do not count."""
    return [name for name, check in checks.items() if check.state == "missing"]


def checks_page(study: str, checks: Mapping[str, Check]) -> Group:
    """The verdict, a line for each check, the files that are missing."""
    lacks = ", ".join(missing(checks))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, check in checks.items():
        table.add_row(Text(check.state, STYLES[check.state]), name, Text(check.found))
        if check.todo:
            table.add_row("", "", Text(f"-> {check.todo}", "bold" if check.state == "missing" else ""))
    return Group(
        Text(f"not ready for {study}: look at {lacks}" if lacks else f"ready for {study}", "bold"),
        Text(),
        table,
        *(Text("\n".join((f"\nmissing {name}:", *it.files))) for name, it in checks.items() if it.files),
        Text(f"\n{NOT_LOOKED_AT}", "dim"),
    )


def check_weights(study: Study) -> Check:
    """Whether all files are there, by name and size; their content is verified only when they are loaded."""
    model = base_model(study.backbone)
    files, folder = model.files.FILES, model.weights_folder(study.weights)
    gone = model.files.missing_files(folder)
    place = shown_path(folder)
    if model.download is None:
        if gone:
            names = ", ".join(file.path for file in gone)
            return Check("missing", f"{place}: {names} missing", "install lora-sweep again")
        return Check("OK", f"{model.name}'s, shipped with lora-sweep")
    if not gone:
        there = [found for file in files if (found := file.find(folder))]
        total = size(sum(path.stat().st_size for path in there))
        return Check("OK", f"all {len(there)} files, {total}, in {place}")
    return Check(
        "missing",
        f"{len(gone)} of {len(files)} files (about {size(needed_bytes(gone))}) are missing in {place}",
        f"lora-sweep run fetches them first, or now: {fetch_command(model.download, folder)}; "
        f"{'the study key weights' if study.weights else FOLDER_VARIABLE} names another folder",
        tuple(f"{size(file.size_bytes) if file.size_bytes else '':>8}  {file.path}" for file in gone),
    )


def check_data(study: Study, runs: Runs) -> Check:
    """Whether the filters can keep enough images of the folder, or of a remote data set's downloaded copy."""
    data = study.data.value
    source = shown_path(Path(data.source))
    if not is_here(data, runs.cache):
        try:
            check_loader(data)
        except DataError as error:
            return Check("missing", str(error))
        return Check("OK", f"{source} is fetched when the sweep starts; the network was not tried")
    try:
        outlook = look_ahead(study, runs)
    except NoTrialPossible as none:
        return Check("missing", str(none), "other images, captions or data.filters are needed")
    except (ValueError, OSError) as error:
        return Check("missing", str(error), "put the images there, or change data.source")
    notes = ((say_bad(outlook.bad),) if outlook.bad else ()) + outlook.notes
    found = "; ".join((f"{outlook.images} images in {source}", *notes))
    return Check("warn" if notes else "OK", found)


def check_runs(study: Study, runs: Runs) -> Check:
    """Can results be written, and does another driver hold the lock on this study? A mere lock file does not
    count.
    """
    try:
        tempfile.TemporaryFile(dir=existing(runs.path)).close()
    except OSError as error:
        found = f"{runs.path} cannot be written ({error.strerror})"
        return Check("missing", found, "choose another folder with --runs or LORA_SWEEP_RUNS")
    folder = runs.study(study.name)
    if is_locked(folder):
        found = f"a driver works on {study.name} right now ({folder.lock})"
        return Check("warn", found, "wait for it, or end it with Ctrl-C; one study has one driver")
    try:
        check_changes(study, folder)
    except (StudyError, StoreError) as changed:
        return Check("missing", str(changed), "lora-sweep run refuses it like this")
    except ValueError:  # about the images, which are another check
        pass
    return Check("OK", f"{runs.path} can be written; no driver is at work on {study.name}")


def check_disk(plan: Plan, runs: Runs) -> Check:
    """Room for the trials under the runs folder, and for missing weights under the models folder; they may
    share a disk.
    """
    found = disks(plan, runs)
    if short := [str(disk) for disk in found if disk.is_short]:
        todo = f"free some, or choose another disk with --runs or {FOLDER_VARIABLE}"
        return Check("missing", "; ".join(short), todo)
    rooms = [f"{size(disk.free_bytes)} free, about {size(disk.needed_bytes)} needed" for disk in found]
    if plan.fetch_bytes and len(found) == 1:
        rooms[0] += f" ({size(plan.fetch_bytes)} of it for weights)"
    return Check("OK", "; ".join(rooms))


def check_memory(plan: Plan) -> Check:
    """Whether the host's memory is large enough to load the model; only a warning where others use it now."""
    memory, needed = host_memory(), plan.host_bytes
    found = (
        f"{cores()} cores; {size(memory.free_bytes)} of {size(memory.total_bytes)} memory free, "
        f"about {size(needed)} needed (estimate)"
    )
    if memory.total_bytes < needed:
        return Check("missing", found, "this machine is too small to load the model")
    if memory.free_bytes < needed:
        return Check("warn", found, "other programs hold it; end some before a sweep")
    return Check("OK", found)


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


def _answer(answer: "Future[Check]", left_s: float) -> Check:
    try:
        return answer.result(timeout=max(0.0, left_s))
    except TimeoutError:
        return Check("warn", f"no answer in {LIMIT_S:g} s, so this is not known")
