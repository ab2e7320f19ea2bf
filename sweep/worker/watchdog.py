"""How long the worker may be silent before it counts as hung: learned from its own pace, never under a floor."""

import os
import time

from core.trial.spec import TrialSpec
from sweep import events
from sweep.events import Event, Message
from sweep.plan.pace import megapixels

# Each phase begins with an event; the floors leave room for slow disks, first compilations and busy machines.
FLOORS_S = {"start": 900.0, "prepare": 900.0, "step": 180.0, "picture": 300.0}
NEXT_PHASE: dict[type[Event], str] = {
    events.Ready: "prepare",
    events.Started: "prepare",
    events.Training: "step",
    events.Drawing: "picture",
}
PATIENCE = 20.0  # times the longest silence so far
MOST_MORE_S = 3600.0  # than that: a hang early in the night must be noticed before the morning
# a driver that waits looks so often; what is more it stood still itself, and with it perhaps the whole
# machine
LOOK_S = 1.0


class Watchdog:
    """Told of every message of one worker."""

    def __init__(self) -> None:
        # Tests shorten the floor of a step; nobody else should.
        self._floors_s = FLOORS_S | {
            "step": float(os.environ.get("LORA_SWEEP_STEP_FLOOR_S") or FLOORS_S["step"])
        }
        self._longest_s: dict[tuple[str, float], float] = {}  # by phase and work
        self._work = 1.0
        self.watch()

    def watch(self) -> None:
        """A fresh worker: it is starting up."""
        self.phase = "start"
        self.rest(self._work)

    def rest(self, work: float = 1.0) -> None:
        """Work was handed over now: silence counts from here. `work` as `work_of` tells it."""
        self._work = work
        self._heard_at = self._said_at = self._looked_at = time.monotonic()
        self._stood_still_s = 0.0  # the driver, since the worker last said something

    def look(self) -> None:
        """Called before each judgement: time in which the driver itself stood still (SIGSTOP, `docker pause`,
        a busy disk) is no silence of the worker, which may have stood still with it."""
        now = time.monotonic()
        stood_still_s = max(0.0, now - self._looked_at - LOOK_S)
        self._looked_at = now
        self._heard_at += stood_still_s
        self._stood_still_s += stood_still_s

    def heard(self, message: Message) -> None:
        """Learns from the worker's own stamps (one clock for all processes), so that a pause of the driver is
        no silence; nor does it learn from a pause of both."""
        self._heard_at = time.monotonic()
        silent_s = message.monotonic - self._said_at - self._stood_still_s
        self._longest_s[self.phase, self._work] = max(
            silent_s, self._longest_s.get((self.phase, self._work), 0.0)
        )
        self._said_at, self._stood_still_s = message.monotonic, 0.0
        self.phase = NEXT_PHASE.get(type(message.event), self.phase)

    @property
    def allowed_s(self) -> float:
        """The longest silence in this phase: of a size of work that was never measured, the floor for that
        much more work.
        """
        floor_s, longest_s = self._floors_s[self.phase], self._longest_s.get((self.phase, self._work))
        if longest_s is None:
            more = self._work if self.phase in ("step", "picture") else 1.0
            return min(floor_s * more, floor_s + MOST_MORE_S)
        return max(floor_s, min(PATIENCE * longest_s, longest_s + MOST_MORE_S))

    @property
    def left_s(self) -> float:
        return self._heard_at + self.allowed_s - time.monotonic()


def work_of(spec: TrialSpec) -> float:
    """How many pictures of a megapixel one step is worth, at least one; attention grows with the square of
    the pixels.
    """
    size = max(1.0, megapixels(spec))
    return size * max(1.0, size * (spec.train.batch_size if spec.train else 1))
