"""What one call of `run` came to, and how it says so."""
from dataclasses import dataclass, field

from core.settings import Result


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`stopped` says who ended it early, `until` that this was the hour asked for."""
    study: str
    told: int
    new: int
    wall_s: float
    driver_cpu_s: float
    idle_s: list[float] = field(default_factory=list)  # the worker's waits between trials
    stopped: str | None = None
    until: str | None = None

    def closing(self, best: Result | None) -> tuple[str, int]:
        """The last line for the user, and the exit code."""
        said = f"best {best.aesthetic_mean:.2f} (trial {best.spec.number})" if best else "none passes the gate yet"
        if self.stopped and self.stopped == self.until:
            return (f"stopped at {self.until}: {self.new} trials in {self.wall_s:.0f} s, {self.told} in all, {said}; "
                    "the same command goes on"), 0
        if self.stopped:
            return f"stopped by {self.stopped} after {self.told} trials; everything is kept, the same command goes on", 130
        if not self.new:
            return f"study {self.study} is complete: {self.told} trials told, nothing left to do (--trials asks for more)", 0
        idle = f", the worker waited {sum(self.idle_s) / len(self.idle_s):.2f} s between trials" if self.idle_s else ""
        return (f"{self.new} trials in {self.wall_s:.0f} s, {said}; the driver took {self.driver_cpu_s / self.new:.2f} s of CPU "
                f"per trial{idle}"), 0
