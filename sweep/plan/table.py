"""A plan in a terminal: the answer first, then the cost of each kind of trial, then what that rests on."""

from datetime import datetime, timedelta

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.base_models import base_model
from reports.leaderboard import cell
from reports.units import counted, duration, size
from sweep.plan.gpu_speed import gpu_pace
from sweep.plan.pace import PARTS
from sweep.plan.plan import COSTLY, Disk, Plan, Row
from sweep.stop import clock, seconds_until

PART_TITLES = {"prepare": "prepare", "train": "training", "render": "story", "score": "scoring"}
EXAMPLES = ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA H200")
CARD_BYTES = 24 * 2**30
UNKNOWN = "?"
WIDE = 96  # columns: enough for three searched settings and all parts of a trial
PLACES = {"cpu": "the CPU", "cuda": "the GPU"}


def plan_page(plan: Plan, now: datetime, until: datetime, disks: list[Disk], width: int) -> Group:
    """`now` and `until` are naive local times, `disks` from `sweep.plan.plan.disks`, `width` in columns."""
    warnings = [Text(f"The disk is too small for that: {disk}.", "yellow") for disk in disks if disk.is_short]
    return Group(
        Text(verdict(plan, now, until), style="bold"),
        *warnings,
        Text(provenance(plan), "dim"),
        costs(plan, width),
        facts(plan, disks[0].free_bytes),
    )


def verdict(plan: Plan, now: datetime, until: datetime) -> str:
    """One sentence: how long the trials take, and how many of them end before `until`."""
    name, hour = plan.study.name, clock(until)
    place = plan.gpu.name if plan.gpu else PLACES.get(plan.device, plan.device)
    if plan.pace is None:
        return f"{name}: how long a trial takes here is not known: {plan.basis}."
    if not plan.todo:
        more_s = plan.pace.trial_s(plan.typical.spec)
        return (
            f"{name}: {counted(plan.done, 'trial')} done, none left to do; one more takes about "
            f"{duration(more_s)} on {place}."
        )
    ends_s, left_s, one = plan.ends_s(plan.pace)[1:], seconds_until(until, now), plan.todo == 1
    fitting = sum(end_s <= left_s for end_s in ends_s)
    trials = counted(plan.todo, "more trial" if plan.done else "trial")
    takes = f"{name}: {trials} {'takes' if one else 'take'} about {duration(ends_s[-1])} on {place}"
    if fitting == plan.todo:
        end = now + timedelta(seconds=ends_s[-1])
        return f"{takes}; {'it fits' if one else 'all fit'} before {hour}, done by about {end:%H:%M}."
    some = f"{fitting} of them fit" if fitting > 1 else "one of them fits" if fitting else "none of them fits"
    return f"{takes}; {some} before {hour}, {duration(left_s)} from now."


def provenance(plan: Plan) -> str:
    """One sentence: which numbers of the plan are measured and which are estimates."""
    if plan.pace is None:
        return "Disk and memory are estimates; times come with the first finished trial."
    if plan.pace.trials:
        return f"Times are {plan.basis}; memory and disk are estimates."
    return "All of this is an estimate: nothing was measured here yet. The first finished trials replace it."


def costs(plan: Plan, width: int) -> Table:
    """A row for each kind of trial; under `WIDE` columns only the two longest parts of each."""
    rows = [plan.cheapest, plan.typical, plan.dearest, *plan.first]
    if plan.cheapest.spec == plan.dearest.spec:
        rows = [plan.typical, *plan.first]
    settings = [name for name in COSTLY if name in plan.study.space]
    parts = [part for part in PARTS if width >= WIDE or part in ("train", "render")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("trial", vertical="bottom", no_wrap=True)
    headings = [name.replace("_", "\n") for name in settings]
    for heading in (*headings, "training\nsteps", *(PART_TITLES[part] for part in parts), "in all", "disk"):
        table.add_column(heading, justify="right", vertical="bottom", overflow="fold")
    for row in rows:
        table.add_row(*_cells(plan, row, settings, parts), style="bold" if row is plan.typical else "")
    return table


def _cells(plan: Plan, row: Row, settings: list[str], parts: list[str]) -> list[str]:
    assert row.spec.train
    params = row.spec.params()
    parts_s = plan.pace.parts_s(row.spec) if plan.pace else {}
    in_all = duration(sum(parts_s.values())) if parts_s else UNKNOWN
    if plan.pace and not plan.pace.trials:
        del parts_s["prepare"]  # depends on what the cache lacks, so it cannot be estimated
    times = [duration(parts_s[part]) if part in parts_s else UNKNOWN for part in parts]
    settled = [cell(name, params[name]) for name in settings]
    return [row.name, *settled, str(row.spec.train.total_steps), *times, in_all, size(row.disk_bytes)]


def facts(plan: Plan, free_bytes: int) -> Table:
    """What else a plan says, line by line; `free_bytes` is what is free under the runs folder."""
    lines = {
        "sweep": _extremes(plan),
        "images": _images(plan),
        "GPU memory": _gpu_memory(plan),
        "host memory": f"about {size(plan.host_bytes)}",
        "disk": _disk(plan, free_bytes),
        "weights": _weights(plan),
        "rests on": plan.basis if plan.pace and not plan.pace.trials else "",
        "elsewhere": _elsewhere(plan),
        "not known": _unknown(plan),
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _extremes(plan: Plan) -> str:
    if plan.pace is None or plan.cheapest.spec == plan.dearest.spec or not plan.todo:
        return ""
    least, most = (duration(plan.todo * plan.pace.trial_s(row.spec)) for row in (plan.cheapest, plan.dearest))
    return f"{least} if every trial left were the cheapest, {most} if the dearest"


def _images(plan: Plan) -> str:
    if not plan.new_images:
        return ""
    takes = f": about {duration(plan.images_s(plan.pace))}" if plan.pace and plan.pace.image_s else ""
    return (
        f"{counted(plan.new_images, 'image')} never scored here: read, scored and encoded once, in the "
        f"first trial{takes}"
    )


def _gpu_memory(plan: Plan) -> str:
    if not plan.memory or plan.device == "cpu":
        return ""
    least = plan.memory.least
    enough = "a GPU of 24 GB is enough" if least < CARD_BYTES else "a GPU of 24 GB is too small for this"
    if plan.memory.training > CARD_BYTES > least:
        enough += " with gradient checkpointing"
    here = f"; this one has {plan.gpu.memory_bytes / 2**30:.0f} GB" if plan.gpu else ""
    return (
        f"about {size(plan.memory.training)} in training, {size(plan.memory.checkpointed)} with "
        f"checkpointing, {size(plan.memory.encoding)} while text is encoded: {enough}{here}"
    )


def _disk(plan: Plan, free_bytes: int) -> str:
    left = f"about {size(plan.disk_bytes)} for the {counted(plan.todo, 'trial')} left; " if plan.todo else ""
    return (
        f"{left}{size(plan.story_texts_bytes)} in the cache for the story's prompts, "
        f"{size(plan.image_bytes)} for each training image; {size(free_bytes)} are free"
    )


def _weights(plan: Plan) -> str:
    if not plan.fetch_bytes:
        return ""
    return f"about {size(plan.fetch_bytes)} are missing: fetched once, before the first trial"


def _elsewhere(plan: Plan) -> str:
    """How long a typical trial takes on common GPUs, where the pace here is not known."""
    work = base_model(plan.study.backbone).work
    if plan.pace or work is None or plan.study.precision == "fp32":
        return ""
    times = [
        f"{duration(gpu_pace(work, gpu).trial_s(plan.typical.spec))} on {gpu.removeprefix('NVIDIA ')}"
        for gpu in EXAMPLES
    ]
    return f"a typical trial by estimate: {', '.join(times)}"


def _unknown(plan: Plan) -> str:
    if plan.pace and plan.pace.trials:
        return ""
    return (
        "how long it takes, once, to load the base model and to encode the story's texts: this comes on top"
    )
