"""What was measured: rows, checks, the comparison of a whole trial; as text and as JSON."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

TRIAL_STEPS, TRIAL_IMAGES = 1000, 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting. `seconds` for one training step, or for all `batch` images; `tflop` is what that
    executes.
    """

    work: str
    way: str = "ours"  # or naive, or compiled
    precision: str = ""
    batch: int = 1
    checkpointing: bool | None = None
    seconds: float | None = None
    warm_up_s: float | None = None
    tflop: float | None = None
    peak_gb: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        recomputed = {True: ", checkpointing", False: "", None: ""}[self.checkpointing]
        return f"{self.work} {self.way} {self.precision} batch {self.batch}{recomputed}"

    @property
    def tflops(self) -> float | None:
        return self.tflop / self.seconds if self.tflop and self.seconds else None


@dataclass(frozen=True, kw_only=True)
class Check:
    """A number that must not be above its limit."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # false for NaN


@dataclass
class Findings:
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.broken and all(check.passed for check in self.checks)

    def row(
        self, work: str, way: str, precision: str, batch: int, checkpointing: bool | None = None
    ) -> Row | None:
        wanted = (work, way, precision, batch, checkpointing)
        return next(
            (
                r
                for r in self.rows
                if r.seconds and (r.work, r.way, r.precision, r.batch, r.checkpointing) == wanted
            ),
            None,
        )

    def trials(self, precision: str) -> dict[str, float | None]:
        """A trial of 1000 steps and eight images: seconds both ways, their ratio, our peak; None where a
        row is missing.
        """
        step = min(
            filter(None, (self.row("step", "ours", precision, 1, on) for on in (False, True))),
            key=lambda row: row.seconds or 0,
            default=None,
        )
        story = self.row("images", "ours", precision, TRIAL_IMAGES)
        naive_step, naive_image = (
            self.row("step", "naive", precision, 1, True),
            self.row("images", "naive", precision, 1),
        )
        ours = TRIAL_STEPS * step.seconds + story.seconds if step and story else None
        naive = (
            TRIAL_STEPS * naive_step.seconds + TRIAL_IMAGES * naive_image.seconds
            if naive_step and naive_image
            else None
        )
        peaks = [row.peak_gb for row in (step, story) if row and row.peak_gb]
        return {
            "ours_s": ours,
            "naive_s": naive,
            "ratio": naive / ours if ours and naive else None,
            "peak_gb": max(peaks, default=None),
        }

    def to_json(self, precision: str) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "rows": [asdict(row) | {"tflops": row.tflops} for row in self.rows],
            "checks": [
                asdict(check)
                | {"value": check.value if math.isfinite(check.value) else None, "passed": check.passed}
                for check in self.checks
            ],
            "trial": self.trials(precision),
            "dropped": self.dropped,
            "broken": self.broken,
            "lines": self.lines,
        }

    def to_text(self, precision: str) -> str:
        lines = [", ".join(f"{key} {value}" for key, value in self.machine.items()), ""]
        lines += _columns(
            [
                ("work", "way", "precision", "batch", "checkpointing", "s", "TFLOP/s", "peak GB", "note"),
                *(_cells(row) for row in self.rows),
            ]
        )
        lines += ["", *self.lines, *_trial_lines(self.trials(precision))]
        lines += [
            "",
            *_columns(
                [
                    ("check", "value", "at most", ""),
                    *(
                        (c.name, f"{c.value:.2e}", f"{c.limit:.0e}", "ok" if c.passed else "FAILED")
                        for c in self.checks
                    ),
                ]
            ),
        ]
        lines += [f"dropped for want of time: {name}" for name in self.dropped]
        lines += [f"broken: {name}" for name in self.broken]
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.work,
        row.way,
        row.precision,
        str(row.batch),
        {True: "on", False: "off", None: ""}[row.checkpointing],
        _number(row.seconds, ".4g"),
        _number(row.tflops, ".4g"),
        _number(row.peak_gb, ".1f"),
        row.note,
    )


def _trial_lines(trials: dict[str, float | None]) -> list[str]:
    return [
        f"a trial of {TRIAL_STEPS} steps and {TRIAL_IMAGES} images, extrapolated from the rows above: "
        f"ours {_number(trials['ours_s'], '.0f')} s, naive {_number(trials['naive_s'], '.0f')} s, "
        f"ratio {_number(trials['ratio'], '.2f')}; ours takes {_number(trials['peak_gb'], '.1f')} GB at most"
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
