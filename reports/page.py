"""The report: one offline page with the leaderboard, every story and every setting of a study."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from core.files import write_text
from core.folders import StudyFolder, TrialFolder
from core.settings import Result
from reports.console import cell, duration
from reports.table import BASE, gate_word, leaderboard, passed, ranked

TEMPLATES = Path(__file__).with_name("templates")
UNSHOWN = ("state", "reason", "message")  # columns whose words stand in the gate's column
WORDS = ("trial", "gate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of a story; `path` is relative to the page, or None where the file is gone."""
    number: int
    path: str | None
    prompt: str
    negative_prompt: str
    seed: int
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One trial's story as the page shows it; `title` is the trial's name and `lora` its file."""
    title: str
    anchor: str
    result: Result
    gate: str
    won: bool
    pictures: tuple[Picture, ...]
    sheet: str | None
    lora: str | None
    params: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the leaderboard; `order` is what it sorts by, empty where there is nothing."""
    text: str
    order: str
    anchor: str | None = None


def write_report(study: StudyFolder, title: str = "") -> Path:
    """Write runs/<study>/report/index.html; pictures stay where they are and are linked. `title` stands above it all."""
    results, since = ranked(study), study.compares_from()
    best = next(iter(passed(study)), None)
    base = study.base.read_result()
    boards = [_board(study, BASE, study.base, base, since, False)] if base else []
    for result in results:
        number = result.spec.number
        boards.append(_board(study, number, study.made(result), result, since, best is not None and number == best.spec.number))

    frame = leaderboard(study)
    columns = [name for name in frame.columns if name not in UNSHOWN]
    html = template_environment().get_template("report.html.jinja").render(
        name=study.path.name, title=title or _story_title(results, base), best=best, base=base, results=results,
        passed=len(passed(study)), failed=sum(result.state == "failed" for result in results),
        unfinished=_unfinished(study), gate=_gate(results, base), columns=columns, words=WORDS,
        rows=[_cells(row, columns, best) for _, row in frame.iterrows()], boards=boards,
        study_file=study.frozen.read_text(encoding="utf-8") if study.frozen.exists() else "",
    )
    return write_text(study.report, html)


def _board(study: StudyFolder, trial: int | str, folder: TrialFolder, result: Result, since: int, won: bool) -> Board:
    link = _linker(study)
    scores = result.aesthetic or (None,) * len(result.spec.story.scenes)
    pictures = tuple(
        Picture(number=number, path=link(folder.picture(number)), prompt=scene.prompt,
                negative_prompt=scene.negative_prompt, seed=scene.seed, score=score)
        for number, (scene, score) in enumerate(zip(result.spec.story.scenes, scores, strict=True), start=1)
    )
    params = {"seed": result.spec.seed, "backbone": result.spec.backbone, "precision": result.spec.precision,
              "data": result.spec.data.source, "caption": result.spec.data.caption} | result.spec.params()
    return Board(
        title="Base model" if trial == BASE else f"Trial {trial}", anchor=_anchor(trial), result=result,
        gate=gate_word(result, since), won=won, pictures=pictures, sheet=link(folder.sheet), lora=link(folder.lora),
        params={name: "–" if value is None else str(value) for name, value in params.items()},
    )


def _cells(row: pd.Series, columns: list[str], best: Result | None) -> list[Cell]:
    return [_cell(name, row, best) for name in columns]


def _cell(name: str, row: pd.Series, best: Result | None) -> Cell:
    value = row[name]
    if name == "trial":
        won = best is not None and value == best.spec.number
        return Cell(text=f"★ {value}" if won else str(value), order="-1" if value == BASE else str(value),
                    anchor=_anchor(value))
    if name == "gate":
        word = row["gate"] or row["reason"] or "failed"
        return Cell(text=word, order={"pass": "0", "fail": "1", "older": "3"}.get(word, f"2 {word}"))
    if name == "duration_s":
        return Cell(text=duration(value), order=str(value))
    return Cell(text=cell(name, value), order="" if pd.isna(value) else str(value))


def _anchor(trial: int | str) -> str:
    return BASE if trial == BASE else f"trial-{trial:04d}"


def _linker(study: StudyFolder) -> Callable[[Path], str | None]:
    """Links as the page needs them: relative to its folder, which lies in the study's."""
    return lambda path: f"../{path.relative_to(study.path).as_posix()}" if path.exists() else None


def _story_title(results: list[Result], base: Result | None) -> str:
    return next((result.spec.story.title for result in (*results, base) if result), "")


def _gate(results: list[Result], base: Result | None) -> float | None:
    return next((result.spec.gate for result in (*results, base) if result), None)


def _unfinished(study: StudyFolder) -> int:
    folders = (study.path / "trials").glob("[0-9]*")
    return sum(not TrialFolder(path).result.exists() for path in folders)


def template_environment() -> jinja2.Environment:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["score"] = _score
    environment.filters["duration"] = duration
    return environment


def _score(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
