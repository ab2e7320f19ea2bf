"""What the user sees of a sweep: a live display on a terminal, plain lines elsewhere, and the last line."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from typing_extensions import override

from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from core.verdict import BASE_PASSES
from reports.units import counted, describe, duration
from sweep.events import Ready
from sweep.stop import StopRequest


class Progress:
    """Shows a sweep as plain lines, none for epochs and images: for logs, pipes and batch systems. The driver
    calls its methods as things happen.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.best: float | None = None
        self.finished, self.target = 0, 0

    def start(self, study: str, finished: int, target: int, best: float | None = None) -> None:
        """The sweep begins with `finished` of `target` trials; `best` is the best passing mean so far."""
        self.finished, self.target, self.best = finished, target, best
        self.note(f"study {study}: {finished} of {counted(target, 'trial')} finished")

    def worker_ready(self, ready: Ready) -> None:
        """A worker has loaded the base model."""
        self.note(f"worker ready on {ready.device} ({ready.seconds:.1f} s to load the base model)")
        if ready.unknown_words:
            self.note(
                "note: the base model does not know these pieces of the prompts, which a LoRA learns where "
                f"captions have them: {', '.join(ready.unknown_words)}"
            )

    def base(self, result: Result) -> None:
        """The base model's own story is scored."""
        self.note(f"base model's own story: {result.aesthetic_mean:.2f}")
        if result.passed_gate:
            self.note(f"note: {BASE_PASSES}")

    def looking(self, spec: TrialSpec, number: int, total: int) -> None:
        """Training image `number` of `total` is read and scored for the first time."""

    def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: Sequence[float]) -> None:
        """Epoch `epoch` is trained, `step` steps in all; `losses` has the loss of each of its steps."""

    def image(self, spec: TrialSpec, number: int) -> None:
        """Image `number` of the story is rendered."""

    def trial_finished(self, result: Result, params: Mapping[str, Value]) -> None:
        """A trial is complete or failed; `params` are its sampled settings."""
        self.finished += 1
        self.note(
            f"trial {result.spec.number} ({self.finished} of {self.target}): {self._verdict(result)}  "
            f"{describe(params)}"
        )

    def note(self, text: str) -> None:
        """A line for the user."""
        # The sweep goes on with a full disk under the log or a closed pipe, at which rich would exit.
        with suppress(OSError, SystemExit):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """The sweep has ended."""

    def _verdict(self, result: Result) -> str:
        if result.state == "failed":
            return f"failed, {result.reason}: {result.message}"
        mean = result.aesthetic_mean
        assert mean is not None
        best = result.passed_gate and (self.best is None or mean > self.best)
        if best:
            self.best = mean
        gate = "passes the gate" if result.passed_gate else "under the gate"
        return f"{mean:.2f} {gate}{', best so far' if best else ''}"


class LiveProgress(Progress):
    """The same lines above two bars: the sweep's trials, and the steps of the current trial."""

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

    @override
    def start(self, study: str, finished: int, target: int, best: float | None = None) -> None:
        super().start(study, finished, target, best)
        self._bars.update(self._sweep, completed=finished, total=target)
        self._bars.start()

    @override
    def base(self, result: Result) -> None:
        super().base(result)
        self._bars.reset(self._trial, visible=False, word="")

    @override
    def looking(self, spec: TrialSpec, number: int, total: int) -> None:
        self._show(spec, number, total, "looking at the images")

    @override
    def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: Sequence[float]) -> None:
        assert spec.train
        self._show(spec, step, spec.train.total_steps, f"loss {sum(losses) / len(losses):.4f}")

    @override
    def image(self, spec: TrialSpec, number: int) -> None:
        self._show(spec, number, len(spec.story.scenes), "drawing the story")

    def _show(self, spec: TrialSpec, completed: int, total: int, word: str) -> None:
        self._bars.update(
            self._trial, visible=True, description=spec.name, completed=completed, total=total, word=word
        )

    @override
    def trial_finished(self, result: Result, params: Mapping[str, Value]) -> None:
        super().trial_finished(result, params)
        self._bars.reset(self._trial, visible=False, word="")
        best = f"best {self.best:.2f}" if self.best is not None else "none passes yet"
        self._bars.update(self._sweep, completed=self.finished, word=best)

    @override
    def stop(self) -> None:
        self._bars.stop()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one start of a sweep did: `new` trials, so that `finished` are in all and `winner` is the best.

    `stopped` is why it ended early. `points` is the size of the space if all of it was tried before the
    budget was used, `queued` the number of requested trials that were not run.
    """

    study: str
    winner: Result | None
    finished: int
    new: int
    wall_s: float
    driver_cpu_s: float
    idle_s: list[float] = field(default_factory=list)  # the worker's waits between trials
    stopped: StopRequest | None = None
    points: int | None = None
    queued: int = 0

    def closing(self, following: str) -> tuple[str, int]:
        """The last line for the user, which names the command `following` this one, and the exit code."""
        new, finished = counted(self.new, "trial"), counted(self.finished, "trial")
        said = "none passes the gate yet"
        if self.winner:
            said = f"best {self.winner.aesthetic_mean:.2f} (trial {self.winner.spec.number})"
        if self.stopped and not self.stopped.by_signal:
            return (
                f"stopped at {self.stopped.name}: {new} in {duration(self.wall_s)}, {self.finished} in all, "
                f"{said}; the same command goes on"
            ), 0
        if self.stopped:
            line = f"stopped by {self.stopped.name} after {finished}; everything is kept"
            return f"{line}, the same command goes on", 130
        complete = f"study {self.study} is complete"
        if self.points:
            return (
                f"{complete}: all {counted(self.points, 'point')} of its space tried, {finished} finished, "
                f"{said}; a wider range or another setting in space gives more; next: {following}"
            ), 0
        if self.queued:
            said += f"; {counted(self.queued, 'queued trial')} not run, for the budget is used"
        if not self.new:
            return f"{complete}: {finished} finished, {said}; --trials asks for more; next: {following}", 0
        return f"{new} finished in {duration(self.wall_s)}, {said}; next: {following}", 0
