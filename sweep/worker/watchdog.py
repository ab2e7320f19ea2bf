"""How long a worker may be silent before it counts as hung: learned from its pace, with a minimum."""

import os
import time

from core.trial.spec import TrialSpec
from sweep import events
from sweep.events import Event, Message
from sweep.plan.pace import megapixels

# Each phase begins with an event; the floors leave room for slow disks, first compilations and busy machines.
FLOORS_S = {"start": 900.0, "prepare": 900.0, "step": 180.0, "image": 300.0}
NEXT_PHASE: dict[type[Event], str] = {
    events.Ready: "prepare",
    events.Started: "prepare",
    events.Training: "step",
    events.Drawing: "image",
}
PATIENCE = 20.0  # times the longest silence so far
MOST_MORE_S = 3600.0  # longer than that at most: an early hang must be noticed before the morning
# A waiting driver calls `look` this often. Where more time has passed, the driver was suspended itself, and
# perhaps the whole machine.
LOOK_S = 1.0


class Watchdog:
    """The silence of one worker: call `heard` with each of its messages, and `look` before using `left_s`."""

    def __init__(self) -> None:
        # Tests fix what a step is allowed, for a busy machine teaches minutes; nobody else should.
        self._step_s = float(os.environ.get("LORA_SWEEP_STEP_SILENCE_S") or 0)
        self._longest_s: dict[tuple[str, float], float] = {}  # by phase and work
        self._work = 1.0
        self.watch()

    def watch(self) -> None:
        """Begin with a fresh worker, which is starting up."""
        self.phase = "start"
        self.work_sent(self._work)

    def work_sent(self, work: float = 1.0) -> None:
        """Count silence from now, for work was sent; `work` is how much one step is, from `work_of`."""
        self._work = work
        self._heard_at = self._said_at = self._looked_at = time.monotonic()
        self._stood_still_s = 0.0  # how long the driver was suspended since the last message

    def look(self) -> None:
        """Leave out time in which the driver itself was suspended (SIGSTOP, `docker pause`, a busy disk): the
        worker may have been suspended with it.
        """
        now = time.monotonic()
        stood_still_s = max(0.0, now - self._looked_at - LOOK_S)
        self._looked_at = now
        self._heard_at += stood_still_s
        self._stood_still_s += stood_still_s

    def heard(self, message: Message) -> None:
        """Learn how long the worker was silent before this message.

        Measured by the times in messages (one clock for all processes), so that a pause of the driver does
        not count; nor does a pause of both.
        """
        self._heard_at = time.monotonic()
        silent_s = message.monotonic - self._said_at - self._stood_still_s
        self._longest_s[self.phase, self._work] = max(
            silent_s, self._longest_s.get((self.phase, self._work), 0.0)
        )
        self._said_at, self._stood_still_s = message.monotonic, 0.0
        self.phase = NEXT_PHASE.get(type(message.event), self.phase)

    @property
    def allowed_s(self) -> float:
        """Seconds of silence allowed in this phase; for a size of work never measured, the floor times it."""
        if self._step_s and self.phase == "step":
            return self._step_s
        floor_s, longest_s = FLOORS_S[self.phase], self._longest_s.get((self.phase, self._work))
        if longest_s is None:
            more = self._work if self.phase in ("step", "image") else 1.0
            return min(floor_s * more, floor_s + MOST_MORE_S)
        return max(floor_s, min(PATIENCE * longest_s, longest_s + MOST_MORE_S))

    @property
    def left_s(self) -> float:
        """Seconds until the worker counts as hung; negative if it does."""
        return self._heard_at + self.allowed_s - time.monotonic()


def work_of(spec: TrialSpec) -> float:
    """Work of one step in images of 1 MP, at least 1; attention grows with the square of the pixels."""
    size = max(1.0, megapixels(spec))
    return size * max(1.0, size * spec.batch_size)
