"""What one call of `run` came to, and how it says so."""
from dataclasses import dataclass, field

from core.trial.spec import Result
from reports.console import counted, duration
from sweep.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`stopped` says why it ended early; `points` how many the space has, if all of them were tried before the budget was used,
    `queued` how many trials wait that somebody asked for."""
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
        said = f"best {best.aesthetic_mean:.2f} (trial {best.spec.number})" if best else "none passes the gate yet"
        if self.stopped and not self.stopped.by_signal:
            return (f"stopped at {self.stopped.name}: {new} in {duration(self.wall_s)}, {self.told} in all, {said}; the same "
                    "command goes on"), 0
        if self.stopped:
            return f"stopped by {self.stopped.name} after {told}; everything is kept, the same command goes on", 130
        if self.points:
            return (f"study {self.study} is complete: all {counted(self.points, 'point')} of its space tried, {told} finished, "
                    f"{said}; a wider range or another setting in space gives more; next: {following}"), 0
        queued = f"; {counted(self.queued, 'queued trial')} not run, for the budget is used" if self.queued else ""
        if not self.new:
            return (f"study {self.study} is complete: {told} finished, {said}{queued}; --trials asks for more; next: "
                    f"{following}"), 0
        return f"{new} finished in {duration(self.wall_s)}, {said}{queued}; next: {following}", 0
