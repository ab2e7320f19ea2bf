"""Print what a study will cost here."""

from datetime import datetime
from pathlib import Path

from core.data.audit import say_bad
from core.data.caption_table import DataError
from core.folders import Runs
from sweep.plan.outlook import Outlook, look_ahead
from sweep.plan.plan import disks, make_plan
from sweep.plan.table import plan_page
from sweep.process.console import out, say
from sweep.resume.fingerprint import check_changes
from sweep.search.sqlite import StoreError
from sweep.stop import deadline
from sweep.study.errors import StudyError
from sweep.study.study import Study, load_study


def plan_study(study: str, runs: Path, until: str, device: str) -> None:
    """Print the plan, also where images were not downloaded yet or a start would be refused."""
    loaded, outlook, why_not = load_study(study, data_may_be_gone=True), None, ""
    try:
        outlook = look_ahead(loaded, Runs(runs))
        check_changes(loaded, Runs(runs).study(loaded.name))
    except (DataError, StudyError, StoreError) as error:  # the plan does not need the images
        data = loaded.data.value
        if isinstance(error, DataError) and not data.is_remote and Path(data.source).exists():
            raise
        why_not = str(error)
    print_plan(loaded, runs, until, device, outlook)
    if why_not:
        say(f"note: lora-sweep run would not start: {why_not}")


def print_plan(study: Study, runs: Path, until: str, device: str, outlook: Outlook | None) -> None:
    """Print the plan, then the notes of `outlook` on images and texts; `until` is HH:MM. Raises UserError."""
    now = datetime.now()
    end = deadline(until, now)
    plan = make_plan(study, Runs(runs), device, outlook.unscored if outlook else 0)
    out.print(plan_page(plan, now, end, disks(plan, Runs(runs)), out.width))
    if outlook and outlook.bad:
        say(say_bad(outlook.bad))
    for note in outlook.notes if outlook else ():
        say(f"note: {note}")
