"""Leaderboard and filters in a terminal; nothing is shown by colour alone."""

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from reports.data.survey import Survey
from reports.leaderboard import TRAINED, cell, is_base
from reports.units import numbered

ALWAYS = ("trial", "gate", "aesthetic_mean", "coherence", "images")
# shown on the page only
LEFT_OUT = ("state", "reason", "message", "aesthetic_min", "aesthetic_std", "duration_s")
WIDE = 104  # columns: enough for the LoRA's settings and four filters
GATE_STYLES = {"pass": "green", "fail": "yellow", "older": "dim"}
REASON_CHARACTERS, MAX_REASONS = 160, 8


def leaderboard_table(frame: pd.DataFrame, width: int = WIDE) -> Table:
    """A table of `reports.leaderboard.leaderboard`; settings equal in all trials go into the caption.

    With `width` under `WIDE` columns only the LoRA's own settings have columns; the caption names the others.
    """
    trials = frame[~frame["trial"].map(is_base).astype(bool)]
    settings = [name for name in frame.columns if name not in (*ALWAYS, *LEFT_OUT)]
    varying = [name for name in settings if trials[name].nunique(dropna=False) > 1]
    narrow = [name for name in varying if name in TRAINED] if width < WIDE else varying
    equal = [name for name in settings if name not in varying] if len(trials) else []
    fixed = ", ".join(f"{name} {cell(name, trials[name].iloc[0])}" for name in equal)
    first = trials.index[(trials["gate"] == "pass").to_numpy()][:1]

    hidden = ", ".join(name for name in varying if name not in narrow)
    lines = [
        "★ winner" if len(first) else "",
        f"in every trial: {fixed}" if fixed else "",
        f"in the report and in a terminal of {WIDE} columns also: {hidden}" if hidden else "",
        *_reasons(trials),
    ]
    caption = "\n".join(filter(None, lines))
    numbers = [*ALWAYS[2:], *narrow]
    # With a gap of 1, six settings fit into 100 columns and four into 80.
    gap = 2 if len(narrow) <= 5 and width >= WIDE else 1
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    for name in ("trial", "gate", *numbers):
        table.add_column(name.replace("_", "\n"), justify="right", vertical="bottom", overflow="fold")
    table.columns[1].justify = "left"
    for index, row in frame.iterrows():
        cells = [cell(name, row[name]) for name in numbers]
        style = "dim" if row["state"] == "failed" else ""
        table.add_row(_trial(row["trial"], index in first), _gate(row), *cells, style=style)
    return table


def data_table(survey: Survey) -> Table:
    """How many images are left after each filter; for searched bounds at their loosest and strictest."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("filter")
    table.add_column("bounds", overflow="fold")
    kept = ("kept with the\nloosest bounds", "kept with the\nstrictest bounds")
    for heading in kept if survey.searched else ("kept",):
        table.add_column(heading, justify="right")
    table.add_row("all images", "", str(len(survey.table)))
    for stage, bounds, *counts in survey.stages():
        cells = [str(count) for count in counts[: 2 if survey.searched else 1]]
        table.add_row("can be used" if stage == "problem" else stage, Text(bounds or "–"), *cells)
    return table


def _reasons(trials: pd.DataFrame) -> list[str]:
    """Lines of the caption: each reason for failures with its trials, and what `older` means."""
    same: dict[str, list[int]] = {}
    for _, row in trials[trials["state"] == "failed"].iterrows():
        same.setdefault(f"{row['reason']}: {row['message'] or 'no more is known'}", []).append(row["trial"])
    lines = [f"{numbered(numbers)}: {reason}"[:REASON_CHARACTERS] for reason, numbers in same.items()]
    del lines[MAX_REASONS:]
    if len(same) > MAX_REASONS:
        lines.append(f"and {len(same) - MAX_REASONS} more reasons, in the report")
    if (trials["gate"] == "older").any():
        lines.append(
            "older: made before a change that was accepted; these scores compare with the base story above "
            "them, not with later trials"
        )
    return lines


def _trial(trial: int | str, won: bool) -> Text:
    return Text(f"★ {trial}", style="bold") if won else Text(str(trial))


def _gate(row: pd.Series) -> Text:
    if row["state"] == "failed":
        return Text(row["reason"] or "failed", style="red")
    return Text(row["gate"], style=GATE_STYLES[row["gate"]])
