"""Has a worker run trials: notices hangs, replaces a failed worker, retries where that may help."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import LoraSweepError
from core.files.files import write_json
from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep import events
from sweep.events import Attempt, Message, Pack, Setup, Task, said_now
from sweep.failures import DEVICE_LOST, HUNG, failure
from sweep.stop import Hour, Stopped, StopRequest
from sweep.worker.local import LocalWorker, WorkerDied
from sweep.worker.watchdog import LOOK_S, Watchdog, work_of

log = logging.getLogger(__name__)
STOP_GRACE_S = 5.0  # for the current step and its checkpoint; a stop must end within 10 s in all
MAX_FAILED_STARTS = 2
# by the watchdog's phase
DOING = {"start": "starting", "prepare": "preparing", "step": "training", "image": "drawing"}
OnMessage = Callable[[Message], None]


class WorkerCannotStart(LoraSweepError):
    """The machine or installation is broken, not the trial; the message is one line for the user."""


@dataclass(kw_only=True)
class Job:
    """A trial for a worker, in one attempt or more; `steps` counts the training steps of this attempt."""

    spec: TrialSpec
    folder: TrialFolder
    steps: int = 0

    def task(self) -> Task:
        """The next attempt, as an earlier one left it in the trial's folder."""
        attempt = Attempt.load(self.folder.attempt, self.spec.batch_size)
        return Task(spec=self.spec, folder=self.folder, attempt=attempt)


class Supervisor:
    """Owns the worker. For the driver's main thread only; `ask_to_stop` also for a signal handler."""

    def __init__(self, log_file: Path, setup: Setup, until: Hour | None = None) -> None:
        self._log_file, self._setup = log_file, setup
        self._worker: LocalWorker | None = None
        self._watchdog = Watchdog()
        self._sent: set[Path] = set()
        self._failed_starts, self._was_ready = 0, False
        self._until = until
        self._finished_at: float | None = None
        self.idle_s: list[float] = []  # the worker's waits between trials
        self._stop_by: float | None = None
        self.stop_asked: StopRequest | None = None

    def start(self) -> None:
        """Start a worker if there is none: its imports run while the driver does other things."""
        if self._worker is None:
            self._worker = LocalWorker(self._log_file, self._setup)
            self._watchdog.watch()
            self._sent.clear()

    def ask_to_stop(self, request: StopRequest) -> None:
        """Have `carry_out` raise Stopped soon: during training once the worker has saved a checkpoint."""
        self.stop_asked = request
        if self._worker:
            self._worker.wake()

    @property
    def stop_asked_by_signal(self) -> bool:
        """Whether a signal, not the hour, asked to stop."""
        return self.stop_asked is not None and self.stop_asked.by_signal

    def close(self) -> None:
        """Kill the worker, if there is one."""
        if self._worker:
            self._worker.close()
            self._worker = None

    def send(self, job: Job) -> None:
        """Send a trial to the worker ahead of `carry_out`, so that the device does not wait for bookkeeping;
        idempotent.
        """
        if job.folder.path in self._sent:
            return
        self.start()
        assert self._worker
        self._sent.add(job.folder.path)
        self._watchdog.work_sent(work_of(job.spec))
        with suppress(WorkerDied):  # noticed, classified and answered when its events are read
            self._worker.send(Pack((job.task(),)))

    def carry_out(self, job: Job, hear: OnMessage) -> Result:
        """Run one trial to its end, retried where that may help; `hear` gets every message but heartbeats.

        Raises Stopped and WorkerCannotStart.
        """
        while True:
            self.send(job)
            task = job.task()
            result = self._follow(task, hear)
            self._sent.discard(job.folder.path)
            if result is None or failure(result.reason).retires_worker:
                self.close()
            if result is None:
                continue
            again = task.attempt.after(result.reason)
            if again is None:
                with suppress(OSError):  # a dead worker did not write it
                    write_json(job.folder.result, result)
                return result
            hear(
                said_now(
                    events.Again(
                        reason=result.reason or "",
                        message=result.message or "",
                        micro_batch=again.micro_batch,
                    ),
                    job.spec.number,
                )
            )
            again.save(job.folder.attempt)
            job.folder.result.unlink(missing_ok=True)

    def _follow(self, task: Task, hear: OnMessage) -> Result | None:
        """Read messages until the trial is finished, or its worker is dead or hung -> its result; None if the
        worker did not start.
        """
        try:
            while True:
                message = self._next_message()
                self._learn(message)
                if not isinstance(message.event, events.Alive):
                    hear(message)
                if isinstance(message.event, events.Finished):
                    # On a full disk the worker could send how it ended, but not write it.
                    return task.folder.read_result() or task.failed(
                        message.event.reason, message.event.message
                    )
        except WorkerDied as death:
            log.info("trial %d: %s", task.spec.number, death)  # the user sees it as an event
            if self._watchdog.phase == "start" and death.reason != DEVICE_LOST.name:
                self._failed_starts += 1
                if self._failed_starts == MAX_FAILED_STARTS:
                    raise WorkerCannotStart(
                        f"the worker cannot start ({death}); see {self._log_file}"
                    ) from None
                return None
            stored = task.folder.read_result()
            if stored and stored.state == "complete":  # it died after its work was done
                self.close()
                return stored
            return task.failed(death.reason, str(death))

    def _learn(self, message: Message) -> None:
        """Note what a message says of the worker. Raises WorkerDied where it cannot get its device again."""
        match message.event:
            case events.Ready(device=device):
                self._failed_starts, self._was_ready = 0, True
                # A fresh worker must use this device: never the CPU instead of a lost GPU.
                self._setup = replace(self._setup, device=device)
            case events.Refused(message=why, loading=True) if self._was_ready:
                raise WorkerDied(DEVICE_LOST.name, why)
            case events.Started() if self._finished_at is not None:
                self.idle_s.append(message.monotonic - self._finished_at)
                self._finished_at = None
            case events.Finished():
                self._finished_at = message.monotonic

    def _next_message(self) -> Message:
        """The worker's next message. Raises Stopped, and WorkerDied, also after killing a hung worker."""
        assert self._worker
        while True:
            now = time.monotonic()
            if self._until and self._until.left_s <= 0 and not self.stop_asked:
                self.stop_asked = StopRequest(self._until.name, by_signal=False)
            if self.stop_asked:
                self._stop(now)
            left_s = [self._watchdog.left_s, LOOK_S]
            if self._until and not self.stop_asked:
                left_s.append(self._until.left_s)
            if self._stop_by is not None:
                left_s.append(self._stop_by - now)
            try:
                message = self._worker.next_message(min(left_s))
            except WorkerDied:
                if self._stop_by is not None:
                    raise Stopped from None
                raise
            self._watchdog.look()
            if message is not None:
                self._watchdog.heard(message)
                if isinstance(message.event, events.Stopped):
                    raise Stopped
                return message
            if self._watchdog.left_s <= 0 and not self._worker.waiting:
                silent_s, phase = self._watchdog.allowed_s, self._watchdog.phase
                self._worker.close()
                raise WorkerDied(
                    HUNG.name, f"the worker sent no heartbeat for {silent_s:.0f} s while {DOING[phase]}"
                )

    def _stop(self, now: float) -> None:
        """Have a training worker save a checkpoint. Raises Stopped if it takes too long or trains nothing."""
        assert self._worker
        if self._stop_by is None:
            if self._watchdog.phase != "step":
                raise Stopped
            self._stop_by = now + STOP_GRACE_S
            self._worker.ask_to_stop()
        elif now >= self._stop_by:
            raise Stopped
