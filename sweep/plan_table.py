"""A plan in a terminal: the verdict first, then what each kind of trial costs, then what that rests on."""
from datetime import datetime, timedelta

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reports.console import cell, duration, size
from sweep.cards import kolors_pace
from sweep.deadline import seconds_until
from sweep.pace import PARTS
from sweep.plan import COSTLY, Plan, Row

WORDS = {"prepare": "prepare", "train": "training", "render": "story", "score": "scoring"}
EXAMPLES = ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA H200")
CARD_BYTES = 24 * 2**30
UNKNOWN = "?"


def plan_page(plan: Plan, now: datetime, until: datetime, free_bytes: int) -> Group:
    """`now` and `until` are naive local times, `free_bytes` the disk's under the runs folder."""
    marked = "not known" if plan.pace is None else "measured" if plan.pace.trials else "an estimate, nothing was measured here yet"
    return Group(Text(verdict(plan, now, until), style="bold"), Text(f"Times are {marked}.", style="dim"),
                 costs(plan), facts(plan, free_bytes))


def verdict(plan: Plan, now: datetime, until: datetime) -> str:
    """One sentence: how long it takes, and what of it is there in the morning."""
    name, clock, place = plan.study.name, f"{until:%H:%M}", plan.gpu.name if plan.gpu else plan.device
    if plan.typical.trial_s is None or plan.sweep_s is None:
        return f"{name}: how long a trial takes here is not known: {plan.basis}."
    if not plan.todo:
        return f"{name}: all {plan.done} trials are done; one more takes about {duration(plan.typical.trial_s)} on {place}."
    left_s = seconds_until(until, now)
    fitting = plan.fitting(left_s)
    trials = f"{plan.todo} more trials" if plan.done else f"{plan.todo} trials"
    takes = f"{name}: {trials} take about {duration(plan.sweep_s)} on {place}"
    if fitting == plan.todo:
        return f"{takes}; all fit before {clock}, done by about {now + timedelta(seconds=plan.sweep_s):%H:%M}."
    return f"{takes}; {fitting or 'none'} of them fit{'' if (fitting or 0) > 1 else 's'} before {clock}, {duration(left_s)} from now."


def costs(plan: Plan) -> Table:
    """A row for each kind of trial."""
    rows = [plan.cheapest, plan.typical, plan.dearest, *plan.first]
    if plan.cheapest.spec == plan.dearest.spec:
        rows = [plan.typical, *plan.first]
    settings = [name for name in COSTLY if name in plan.study.space]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("trial", vertical="bottom")
    headings = [name.replace("_", "\n") for name in settings]
    for heading in (*headings, "training\nsteps", *(WORDS[part] for part in PARTS), "in all", "disk"):
        table.add_column(heading, justify="right", vertical="bottom")
    for row in rows:
        table.add_row(*_cells(row, settings), style="bold" if row is plan.typical else "")
    return table


def _cells(row: Row, settings: list[str]) -> list[str]:
    assert row.spec.train
    params = row.spec.params()
    times = [duration(row.parts_s[part]) if row.parts_s else UNKNOWN for part in PARTS]
    return [row.name, *(cell(name, params[name]) for name in settings), str(row.spec.train.total_steps), *times,
            UNKNOWN if row.trial_s is None else duration(row.trial_s), UNKNOWN if row.disk_bytes is None else size(row.disk_bytes)]


def facts(plan: Plan, free_bytes: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (("sweep", _extremes(plan)), ("GPU memory", _gpu_memory(plan)),
                       ("memory", f"about {size(plan.host_bytes)} of the host's (estimate)"), ("disk", _disk(plan, free_bytes)),
                       ("rests on", plan.basis if plan.pace else ""), ("elsewhere", _elsewhere(plan)), ("not known", _unknown(plan))):
        if text:
            table.add_row(name, Text(text))
    return table


def _extremes(plan: Plan) -> str:
    least, most = plan.cheapest.trial_s, plan.dearest.trial_s
    if least is None or most is None or least == most or not plan.todo:
        return ""
    return (f"{duration(plan.todo * least)} if every trial left were the cheapest, {duration(plan.todo * most)} if the dearest")


def _gpu_memory(plan: Plan) -> str:
    if not plan.memory:
        return ""
    least = max(plan.memory.checkpointed, plan.memory.encoding)
    enough = "a 24 GB card is enough" if least < CARD_BYTES else "a 24 GB card is too small for this"
    if plan.memory.training > CARD_BYTES > least:
        enough += " with checkpointing"
    here = f"; this one has {plan.gpu.memory_bytes / 2**30:.0f} GB" if plan.gpu else ""
    return (f"at most about {size(plan.memory.training)} in training, {size(plan.memory.checkpointed)} with checkpointing, "
            f"{size(plan.memory.encoding)} while text is encoded (estimates): {enough}{here}")


def _disk(plan: Plan, free_bytes: int) -> str:
    trials = "not known for these target_modules" if plan.disk_bytes is None else f"about {size(plan.disk_bytes)}"
    return (f"{trials} for the {plan.todo} trials left; in the cache {size(plan.story_texts_bytes)} for the story's words and "
            f"{size(plan.picture_bytes)} for each training picture; {size(free_bytes)} are free")


def _elsewhere(plan: Plan) -> str:
    """What a typical trial would take on cards one may think of, where this machine says nothing."""
    if plan.pace or plan.study.backbone != "kolors" or plan.study.precision == "fp32":
        return ""
    times = [f"{duration(kolors_pace(card).trial_s(plan.typical.spec))} on {card.removeprefix('NVIDIA ')}" for card in EXAMPLES]
    return f"a typical trial by estimate: {', '.join(times)}"


def _unknown(plan: Plan) -> str:
    if plan.pace and plan.pace.trials:
        return ""
    return "how long it takes once to load the base model and to encode new pictures and words: it comes on top"
