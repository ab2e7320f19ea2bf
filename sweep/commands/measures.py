"""What the scores of a study do not see: the gates of each measure here, then every trial's story."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image
from rich import box
from rich.table import Table

from core.data.filters import OPEN, why_dropped
from core.data.image import ImageError, open_image
from core.errors import UserError
from core.folders import Runs, StudyFolder, TrialFolder
from core.trial.spec import Filters
from sweep.process.console import err, out, say, say_not_passed_on, warn
from sweep.start.here import command
from sweep.start.started import started
from sweep.study.study import load_frozen

if TYPE_CHECKING:  # they need torch
    from core.story.gates import Embed, Gated

FOR_GATES = 4  # images: two of the style to measure against, and two that are new
NOT_NEW = ("subset", "image_deduplicator")  # these filters drop another style, and what is trained on anyway
SEEN = "no two images of its style were new to it: style_gain is optimistic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One finished trial: those measures that passed their gates, by name, and the flags that they raise.

    `style_unseen`: whether its style images are such that it was not trained on.
    """

    trial: int
    aesthetic_mean: float | None
    passed_gate: bool
    style_unseen: bool
    measures: dict[str, float]
    flags: dict[str, str]  # name -> sentence


def show_measures(study: str, runs: Path, device: str, as_json: bool) -> None:
    """Print the gates of each measure, and measures and flags of each finished trial. Raises UserError."""
    folder = started(study, runs)
    spec = load_frozen(folder.frozen)
    base = _story(folder.base)
    if not base:
        again = command(f"run {spec.name}", runs)
        raise UserError(f"{folder.base.path}: the base model's story is not whole ({again} draws it first)")

    from core.backbone.backbone import load_backbone
    from core.files.cache import Cache
    from core.story.gates import STYLE_IMAGES, embedder, other_seeds, try_gates
    from sweep.trial import audit_data

    backbone = load_backbone(spec.backbone, device, "fp32", spec.weights, parts=["scorer"])
    with err.status("measuring"):
        facts = Cache(Runs(runs).cache)
        table = audit_data(spec.data.value, backbone, facts, OPEN, lambda *_: None, lambda _: None)
        usable = replace(OPEN, subset=spec.data.filters.subset, deduplicate="phash")
        style = _paths(table[why_dropped(table, usable) == ""])
        if len(style) < FOR_GATES:
            raise UserError(
                f"{spec.name}: {len(style)} of its {len(table)} images can be used, but the gates need "
                f"{FOR_GATES}"
            )
        embed = embedder(backbone)
        gates = try_gates(embed, base, other_seeds(base), [open_image(path) for path in style[:STYLE_IMAGES]])
        sound = {gate.measure for gate in gates if gate.sound}
        rows = list(_rows(folder, table, embed, sound))
    if as_json:
        found = {
            "study": spec.name,
            "scorer": backbone.model.scorer,
            "gates": [asdict(gate) | {"passes": gate.passes} for gate in gates],
            "trials": [asdict(row) for row in rows],
        }
        say(json.dumps(found, ensure_ascii=False))
        return
    say_not_passed_on()
    say(f"five gates, by {backbone.model.scorer} on planted stories; a measure that fails one is not shown:")
    out.print(_gates_table(gates))
    if not rows:
        say("no trial has finished a story yet")
        return
    out.print(_trials_table(rows))
    for row in rows:
        for name, sentence in row.flags.items():
            say(f"trial {row.trial}: {name}: {sentence}")
    if seen := [str(row.trial) for row in rows if not row.style_unseen]:
        say(f"trial{'s' if len(seen) > 1 else ''} {', '.join(seen)}: {SEEN}")


def style_images(table: pd.DataFrame, filters: Filters) -> tuple[pd.DataFrame, bool]:
    """Images of the style that these filters did not keep to train on, and True.

    Only such as score no less than the worst that was kept: filters drop what is spoiled, too. Where there
    are fewer than two, those trained on, and False. `table` is the audit's.
    """
    reasons = why_dropped(table, filters)
    kept = table[reasons == ""]
    new = (reasons != "") & ~reasons.isin(NOT_NEW) & (table["problem"] == "")
    unseen = table[new & (table["score"] >= kept["score"].min())]
    return (unseen, True) if len(unseen) > 1 else (kept, False)


def _rows(folder: StudyFolder, table: pd.DataFrame, embed: "Embed", sound: set[str]) -> Iterator[Row]:
    """Rows in the order of trial numbers; flags only by measures that are `sound`."""
    from core.story.measures import Embedded, flags, measure

    @cache
    def read(path: Path) -> Embedded:
        return embed([open_image(path)])

    verdict = folder.verdict()
    for result in verdict.results:
        number = result.spec.number
        if result.state == "failed":
            continue
        story = _story(folder.artifacts_of(result))
        base = _story(folder.base_story(verdict.base_of(number).until))
        trained = _paths(table[why_dropped(table, result.spec.filters) == ""])
        style, unseen = style_images(table, result.spec.filters)
        if len(story) != len(base) or min(len(story), len(style), len(trained)) < 2:
            warn(
                f"trial {number}: not measured, for images of its story, its base story or its style are gone"
            )
            continue
        styled, known = (Embedded.joined([*map(read, paths)]) for paths in (_paths(style), trained))
        measures = measure(embed(story), embed(base), styled, known)
        yield Row(
            trial=number,
            aesthetic_mean=result.aesthetic_mean,
            passed_gate=result.passed_gate,
            style_unseen=unseen,
            measures={name: value for name, value in asdict(measures).items() if name in sound},
            flags={
                flag.name: flag.sentence
                for flag in flags(measures, result.passed_gate)
                if flag.measure in sound
            },
        )


def _story(folder: TrialFolder) -> list[Image.Image]:
    """The images of a finished story, in order; none where one is missing or damaged."""
    result = folder.read_result()
    scenes = result.spec.story.scenes if result else ()
    try:
        return [open_image(folder.image(number)) for number, _ in enumerate(scenes, start=1)]
    except ImageError:
        return []


def _paths(table: pd.DataFrame) -> list[Path]:
    return [Path(path) for path in table["path"]]


def _gates_table(gates: "Sequence[Gated]") -> Table:
    from core.story.gates import GATES

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("measure", *GATES.values()):
        table.add_column(heading)
    for gate in gates:
        figures = {"pair": f"{gate.right:.2f}, {gate.wrong:.2f}"}
        figures |= {name: f"{getattr(gate, name):.1%}" for name in ("seed", "half", "file", "tone")}
        cells = (f"{'pass' if gate.passes[name] else 'fail'} {figures[name]}" for name in GATES)
        table.add_row(gate.measure, *cells)
    return table


def _trials_table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("trial", "aesthetic_mean", *rows[0].measures):
        table.add_column(heading.replace("_", "\n"), justify="right", vertical="bottom")
    table.add_column("flags", vertical="bottom")
    for row in rows:
        values = (row.aesthetic_mean, *row.measures.values())
        table.add_row(str(row.trial), *(f"{value:.2f}" for value in values), ", ".join(row.flags) or "none")
    return table
