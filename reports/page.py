"""The report: one offline page with the leaderboard, every story and every setting of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from core.base_models import base_model
from core.files.files import write_text
from core.folders import StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import Scene
from core.verdict import Group, Verdict
from reports.leaderboard import cell, gate_word, is_base, leaderboard, row_name, stories
from reports.units import duration

TEMPLATES = Path(__file__).with_name("templates")
UNSHOWN = ("state", "reason", "message")  # columns that the gate's column stands for
TEXT_COLUMNS = ("trial", "gate")


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a story; `path` is relative to the page, None if there is no such file."""

    path: str | None
    scene: Scene
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One trial's story as the page shows it; `title` is the trial's name and `lora` its file."""

    title: str
    anchor: str
    result: Result
    gate: str
    won: bool
    images: tuple[Image, ...]
    sheet: str | None
    lora: str | None
    params: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the leaderboard; `order` is what it is sorted by, empty for a missing value."""

    text: str
    order: str
    anchor: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the trials of one group were made with.

    `before` is the trial before which they were made, None in the newest group; `scenes` are those of the
    base model's story, empty if equal to those of the group above; `study_file` is the text of the study.
    """

    before: int | None
    scenes: tuple[Scene, ...]
    study_file: str


def write_report(study: StudyFolder, verdict: Verdict, notes: Sequence[str] = ()) -> Path:
    """Write runs/<study>/report/index.html, which links the images where they are.

    `notes` are lines on the study as a whole.
    """
    newest, results, best = verdict.groups[0], verdict.ranked, verdict.winner
    base = newest.base.result if newest.base else None
    # The newest results first: title and gate are those of the study as it is now.
    spec = next((result.spec for result in (*newest.results, base, *results) if result), None)

    frame = leaderboard(verdict)
    columns = [name for name in frame.columns if name not in UNSHOWN]
    html = (
        template_environment()
        .get_template("report.html.jinja")
        .render(
            name=study.path.name,
            notes=notes,
            title=spec.story.title if spec else "",
            best=best,
            base=base,
            is_toy=base is not None and base_model(base.spec.backbone).is_toy,
            results=results,
            passed=len(verdict.passed),
            older=len(results) - len(newest.results),
            changes=verdict.changes,
            failed=sum(result.state == "failed" for result in results),
            unfinished=_unfinished(study),
            gate=spec.gate if spec else None,
            columns=columns,
            text_columns=TEXT_COLUMNS,
            rows=[[_cell(name, row, best) for name in columns] for _, row in frame.iterrows()],
            boards=[
                _board(study, group, result, best) for group in verdict.groups for result in stories(group)
            ],
            kept=_kept(study, verdict.groups),
        )
    )
    return write_text(study.report, html)


def _kept(study: StudyFolder, groups: list[Group]) -> list[Origin]:
    """What each group was made with."""
    found: list[Origin] = []
    above: tuple[Scene, ...] = ()
    for group in groups:
        file = study.frozen if group.until is None else study.frozen_of(group.until - 1)
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        scenes = next((result.spec.story.scenes for result in stories(group)), ())
        found.append(Origin(before=group.until, scenes=() if scenes == above else scenes, study_file=text))
        above = scenes
    return found


def _board(study: StudyFolder, group: Group, result: Result, best: Result | None) -> Board:
    spec, trial = result.spec, row_name(result, group)
    folder = (
        study.base_story(group.base.until) if is_base(trial) and group.base else study.artifacts_of(result)
    )
    scores = result.aesthetic or (None,) * len(spec.story.scenes)
    scored = enumerate(zip(spec.story.scenes, scores, strict=True), start=1)
    params = {
        "seed": spec.seed,
        "backbone": spec.backbone,
        "precision": spec.precision,
        "data": spec.data.source,
        "caption": spec.data.caption,
    } | spec.params()
    return Board(
        title=_title(trial, group),
        anchor=_anchor(trial),
        result=result,
        gate=gate_word(result, group),
        won=result is best,
        images=tuple(
            Image(_link(study, folder.image(number)), scene, score) for number, (scene, score) in scored
        ),
        sheet=_link(study, folder.sheet),
        lora=_link(study, folder.lora),
        params={name: "–" if value is None else str(value) for name, value in params.items()},
    )


def _cell(name: str, row: pd.Series, best: Result | None) -> Cell:
    value = row[name]
    if name == "trial":
        won = best is not None and value == best.spec.number
        return Cell(
            text=f"★ {value}" if won else str(value),
            order="-1" if is_base(value) else str(value),
            anchor=_anchor(value),
        )
    if name == "gate":
        word = row["gate"] or row["reason"] or "failed"
        return Cell(text=word, order={"pass": "0", "fail": "1", "older": "3"}.get(word, f"2 {word}"))
    if name == "duration_s":
        return Cell(text=duration(value), order=str(value))
    return Cell(text=cell(name, value), order="" if pd.isna(value) else str(value))


def _title(trial: int | str, group: Group) -> str:
    if not is_base(trial):
        return f"Trial {trial}"
    return "Base model" if group.until is None else f"Base model, before trial {group.until}"


def _anchor(trial: int | str) -> str:
    return trial.replace(" <", "-before-") if isinstance(trial, str) else f"trial-{trial:04d}"


def _link(study: StudyFolder, path: Path) -> str | None:
    """A file of the study as a link on the page; None if it does not exist."""
    return f"../{path.relative_to(study.path).as_posix()}" if path.exists() else None


def _unfinished(study: StudyFolder) -> int:
    folders = study.trials.glob("[0-9]*")
    return sum(not TrialFolder(path).result.exists() for path in folders)


def template_environment() -> jinja2.Environment:
    """Jinja for the HTML pages of `reports/templates`; values are escaped, undefined names raise."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    environment.filters["duration"] = duration
    return environment


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
