"""Survey a study's images: audit them, and find what its filters keep at their loosest and strictest."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import Progress

from core.data.audit import Looking
from core.data.filters import OPEN, select
from core.data.hub import fetch_dataset
from core.folders import Runs, shown_path
from core.trial.spec import Filters, Value
from reports.console import data_table
from reports.data.data_juicer import write_data_juicer
from reports.data.page import write_data_page
from reports.data.survey import Survey
from sweep.plan.outlook import notes_on_study
from sweep.process.console import out, say, say_not_passed_on
from sweep.study.study import Study, load_study


def survey_data(study: Study, runs: Runs, device: str, looking: Looking) -> Survey:
    """Audit the images, scoring those that were never scored. Raises DataError where they are not on this
    machine or cannot be read.
    """
    from core.backbone.backbone import load_backbone
    from core.files.cache import Cache
    from sweep.trial import audit_data

    backbone = load_backbone(study.backbone, device, "fp32", study.weights, parts=["scorer"])
    notes: list[str] = []
    searched = {name: str(search).replace(", ", " or ") for name, search in study.searched_filters.items()}
    fixed = replace(study.data.filters, **{name: getattr(OPEN, name) for name in searched})
    table = audit_data(study.data.value, backbone, Cache(runs.cache), fixed, looking, notes.append)
    # Images without a score are dropped by a fixed filter before scoring, whatever is searched.
    used = table[(table["problem"] == "") & table["score"].notna()]
    captions = dict(zip(used["file"], used["caption"], strict=True))
    notes += notes_on_study(study, captions, list(zip(used["width"], used["height"], strict=True)))
    return Survey(
        study=study.name,
        data=study.data.value,
        scorer=backbone.model.scorer,
        is_toy=backbone.model.is_toy,
        table=table,
        notes=tuple(notes),
        loosest=_extreme(study, table, max),
        strictest=_extreme(study, table, min),
        searched=searched,
    )


def _extreme(study: Study, table: pd.DataFrame, pick: Callable[..., Any]) -> Filters:
    """The fixed filters, and each searched one at the value that alone keeps most (max) or fewest images."""

    def kept(name: str, value: Value) -> int:
        setting: dict[str, Any] = {name: value}
        return len(select(table, replace(OPEN, **setting)))

    extreme: dict[str, Any] = {
        name: pick(search.values, key=partial(kept, name)) for name, search in study.searched_filters.items()
    }
    return replace(study.data.filters, **extreme)


def show_data(study: str, runs: Path, device: str) -> None:
    """Print what the filters keep, and write contact sheet, audit table and Data-Juicer config."""
    say_not_passed_on()
    loaded = load_study(study)
    if brought := fetch_dataset(loaded.data.value, Runs(runs).cache):
        say(brought)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task("looking at images", total=None)
        survey = survey_data(
            loaded, Runs(runs), device, lambda number, total: bars.update(task, completed=number, total=total)
        )
    out.print(data_table(survey))
    for note in survey.notes:
        say(f"note: {note}")
    for file, reason in survey.bad.items():
        say(f"cannot be used: {file}: {reason}")
    for stage, files in survey.dropped().items():
        say(f"dropped by {stage}: {files}")
    if survey.warning:
        say(survey.warning)
    folder = Runs(runs).study(loaded.name).data
    say(f"page       {shown_path(write_data_page(survey, folder))}")
    say(f"config     {shown_path(write_data_juicer(survey, folder))}")
