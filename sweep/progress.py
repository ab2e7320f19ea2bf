"""What the user sees while a sweep runs: a live display on a terminal, plain lines elsewhere, and the last
line.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from core.trial.result import Result
from core.trial.spec import TrialSpec
from core.verdict import BASE_PASSES
from reports.units import counted, describe, duration
from sweep.events import Ready
from sweep.stop import StopRequest


class Progress(Protocol):
    """Told of everything that happens, in the order it happens."""

    def start(self, study: str, told: int, target: int, best: float | None = None) -> None: ...
    def worker_ready(self, ready: Ready) -> None: ...
    def base(self, result: Result) -> None: ...
    def looking(self, spec: TrialSpec, number: int, total: int) -> None: ...
    def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: Sequence[float]) -> None: ...
    def picture(self, spec: TrialSpec, number: int) -> None: ...
    def trial_finished(self, result: Result, params: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


class PlainProgress:
    """One line for each thing worth a line; for logs, pipes and batch systems."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.best: float | None = None
        self.told, self.target = 0, 0

    def start(self, study: str, told: int, target: int, best: float | None = None) -> None:
        self.told, self.target, self.best = told, target, best
        self.note(f"study {study}: {told} of {counted(target, 'trial')} finished")

    def worker_ready(self, ready: Ready) -> None:
        self.note(f"worker ready on {ready.device} ({ready.seconds:.1f} s to load the base model)")
        if ready.unknown_words:
            self.note(
                "note: the base model does not know these pieces of the prompts, which a LoRA learns where "
                "captions "
                f"have them: {', '.join(ready.unknown_words)}"
            )

    def base(self, result: Result) -> None:
        self.note(f"base model's own story: {result.aesthetic_mean:.2f}")
        if result.passed_gate:
            self.note(f"note: {BASE_PASSES}")

    def looking(self, spec: TrialSpec, number: int, total: int) -> None:
        pass

    def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: Sequence[float]) -> None:
        pass  # too many lines for a log

    def picture(self, spec: TrialSpec, number: int) -> None:
        pass

    def trial_finished(self, result: Result, params: dict[str, Any]) -> None:
        self.told += 1
        self.note(
            f"trial {result.spec.number} ({self.told} of {self.target}): {self._verdict(result)}  "
            f"{describe(params)}"
        )

    def note(self, text: str) -> None:
        # a full disk under the log, a closed pipe (rich would exit): the sweep goes on
        with suppress(OSError, SystemExit):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _verdict(self, result: Result) -> str:
        if result.state == "failed":
            return f"failed, {result.reason}: {result.message}"
        mean = result.aesthetic_mean
        assert mean is not None
        best = result.passed_gate and (self.best is None or mean > self.best)
        if best:
            self.best = mean
        return (
            f"{mean:.2f} "
            f"{'passes the gate' if result.passed_gate else 'under the gate'}{', best so far' if best else ''}"
        )


class LiveProgress(PlainProgress):
    """The same lines above two bars: the sweep's trials, and the steps of the trial at work."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[word]}"),
            console=console,
        )
        self._sweep = self._bars.add_task("trials", total=1, word="")
        self._trial = self._bars.add_task("trial", total=1, visible=False, word="")

    def start(self, study: str, told: int, target: int, best: float | None = None) -> None:
        super().start(study, told, target, best)
        self._bars.update(self._sweep, completed=told, total=target)
        self._bars.start()

    def base(self, result: Result) -> None:
        super().base(result)
        self._bars.reset(self._trial, visible=False, word="")

    def looking(self, spec: TrialSpec, number: int, total: int) -> None:
        self._bars.update(
            self._trial,
            visible=True,
            description=spec.name,
            completed=number,
            total=total,
            word="looking at the pictures",
        )

    def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: Sequence[float]) -> None:
        assert spec.train
        self._bars.update(
            self._trial,
            visible=True,
            description=spec.name,
            completed=step,
            total=spec.train.total_steps,
            word=f"loss {sum(losses) / len(losses):.4f}",
        )

    def picture(self, spec: TrialSpec, number: int) -> None:
        self._bars.update(
            self._trial,
            visible=True,
            description=spec.name,
            completed=number,
            total=len(spec.story.scenes),
            word="drawing the story",
        )

    def trial_finished(self, result: Result, params: dict[str, Any]) -> None:
        super().trial_finished(result, params)
        self._bars.reset(self._trial, visible=False, word="")
        best = f"best {self.best:.2f}" if self.best is not None else "none passes yet"
        self._bars.update(self._sweep, completed=self.told, word=best)

    def stop(self) -> None:
        self._bars.stop()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`stopped` says why it ended early; `points` how many the space has, if all of them were tried before
    the budget was used, `queued` how many trials wait that somebody asked for."""

    study: str
    told: int
    new: int
    wall_s: float
    driver_cpu_s: float
    idle_s: list[float] = field(default_factory=list)  # the worker's waits between trials
    stopped: StopRequest | None = None
    points: int | None = None
    queued: int = 0

    def closing(self, best: Result | None, following: str) -> tuple[str, int]:
        """The last line for the user, which names the command `following` this one, and the exit code."""
        new, told = counted(self.new, "trial"), counted(self.told, "trial")
        said = (
            f"best {best.aesthetic_mean:.2f} (trial {best.spec.number})"
            if best
            else "none passes the gate yet"
        )
        if self.stopped and not self.stopped.by_signal:
            return (
                f"stopped at {self.stopped.name}: {new} in {duration(self.wall_s)}, {self.told} in all, "
                f"{said}; the same "
                "command goes on"
            ), 0
        if self.stopped:
            return (
                f"stopped by {self.stopped.name} after {told}; everything is kept, the same command goes on",
                130,
            )
        if self.points:
            return (
                f"study {self.study} is complete: all {counted(self.points, 'point')} of its space tried, "
                f"{told} finished, "
                f"{said}; a wider range or another setting in space gives more; next: {following}"
            ), 0
        queued = (
            f"; {counted(self.queued, 'queued trial')} not run, for the budget is used" if self.queued else ""
        )
        if not self.new:
            return (
                f"study {self.study} is complete: {told} finished, {said}{queued}; --trials asks for more; "
                "next: "
                f"{following}"
            ), 0
        return f"{new} finished in {duration(self.wall_s)}, {said}{queued}; next: {following}", 0
