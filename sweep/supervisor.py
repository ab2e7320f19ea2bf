"""Has a worker carry out trials: watches its silence, replaces it when it fails, tries again what may be an accident."""
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from core.errors import LoraSweepError
from core.files import write_json
from core.folders import TrialFolder
from core.settings import Result, TrialSpec
from sweep import events
from sweep.attempt import Attempt
from sweep.deadline import Hour
from sweep.events import Message, Pack, Setup, Task, said_now
from sweep.failures import DEVICE_LOST, HUNG, failure
from sweep.local_worker import LocalWorker, WorkerDied
from sweep.stop import Stopped, StopRequest
from sweep.watchdog import LOOK_S, Watchdog, work_of

log = logging.getLogger(__name__)
STOP_GRACE_S = 5.0  # for the step at work and its checkpoint; 10 s in all are promised
MAX_FAILED_STARTS = 2
DOING = {"start": "starting", "prepare": "preparing", "step": "training", "picture": "drawing"}  # by the watchdog's phase
OnMessage = Callable[[Message], None]


class WorkerCannotStart(LoraSweepError):
    """No trial's fault: the machine or the installation is broken; the message is one line for the user."""


class Supervisor:
    """Owns the worker; only the driver's main thread calls it, `ask_to_stop` also a signal handler."""

    def __init__(self, log_file: Path, setup: Setup, until: Hour | None = None) -> None:
        self._log_file, self._setup = log_file, setup
        self._worker: LocalWorker | None = None
        self._watchdog = Watchdog()
        self._sent: set[Path] = set()
        self._failed_starts, self._was_ready = 0, False
        self._until = until
        self._stop_by: float | None = None
        self.stop_asked: StopRequest | None = None

    def start(self) -> None:
        """Start the worker if there is none: its imports run while the driver does other things."""
        if self._worker is None:
            self._worker = LocalWorker(self._log_file, self._setup)
            self._watchdog.watch()
            self._sent.clear()

    def ask_to_stop(self, request: StopRequest) -> None:
        self.stop_asked = request
        if self._worker:
            self._worker.wake()

    @property
    def stop_asked_by_signal(self) -> bool:
        return self.stop_asked is not None and self.stop_asked.by_signal

    def close(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None

    def send(self, spec: TrialSpec, folder: TrialFolder) -> None:
        """Hand a trial over ahead of `carry_out`, so that the device does not wait for bookkeeping; once is enough."""
        if folder.path in self._sent:
            return
        self.start()
        assert self._worker
        self._sent.add(folder.path)
        self._watchdog.rest(work_of(spec))
        with suppress(WorkerDied):  # noticed, classified and answered when its events are read
            self._worker.send(Pack((Task(spec=spec, folder=folder, attempt=self._attempt(spec, folder)),)))

    def carry_out(self, spec: TrialSpec, folder: TrialFolder, hear: OnMessage) -> Result:
        """One trial to its end, retried where that may help; every message but heartbeats goes to `hear`.

        Raises Stopped, and WorkerCannotStart, which is no fault of the trial.
        """
        while True:
            self.send(spec, folder)
            attempt = self._attempt(spec, folder)
            result = self._follow(spec, folder, attempt, hear)
            self._sent.discard(folder.path)
            if result is None or failure(result.reason).retires_worker:
                self.close()
            if result is None:
                continue
            again = attempt.after(result.reason)
            if again is None:
                with suppress(OSError):  # in a dead worker's place, for tables read the disk
                    write_json(folder.result, result.to_json())
                return result
            hear(said_now(events.Again(reason=result.reason or "", message=result.message or "", micro_batch=again.micro_batch),
                          spec.number))
            again.save(folder.attempt)
            folder.result.unlink(missing_ok=True)

    def _attempt(self, spec: TrialSpec, folder: TrialFolder) -> Attempt:
        return Attempt.load(folder.attempt, spec.train.batch_size if spec.train else 1)

    def _follow(self, spec: TrialSpec, folder: TrialFolder, attempt: Attempt, hear: OnMessage) -> Result | None:
        """Read messages until the trial is finished; a silent or dead worker ends it too. None if the worker did not start."""
        try:
            while True:
                message = self._next_message()
                event = message.event
                if isinstance(event, events.Ready):
                    self._failed_starts, self._was_ready = 0, True
                    # A fresh worker takes this one or none: a lost GPU must not become the CPU.
                    self._setup = replace(self._setup, device=event.device)
                elif isinstance(event, events.Refused) and event.loading and self._was_ready:
                    raise WorkerDied(DEVICE_LOST.name, event.message)  # it could be loaded before
                if not isinstance(event, events.Alive):
                    hear(message)
                if isinstance(event, events.Finished):
                    # On a full disk the worker could say how it ended, but not write it.
                    return folder.read_result() or self._failed(spec, attempt, event.reason, event.message)
        except WorkerDied as death:
            log.info("trial %d: %s", spec.number, death)  # the user hears of it as an event
            if self._watchdog.phase == "start" and death.reason != DEVICE_LOST.name:
                self._failed_starts += 1
                if self._failed_starts == MAX_FAILED_STARTS:
                    raise WorkerCannotStart(f"the worker cannot start ({death}); see {self._log_file}") from None
                return None
            stored = folder.read_result()
            if stored and stored.state == "complete":  # it died after its work was done
                self.close()
                return stored
            return self._failed(spec, attempt, death.reason, str(death))

    def _failed(self, spec: TrialSpec, attempt: Attempt, reason: str | None, message: str | None) -> Result:
        return Result(state="failed", spec=spec, reason=reason, message=message, micro_batch=attempt.micro_batch,
                      retried=attempt.retried)

    def _next_message(self) -> Message:
        """Raises WorkerDied, also for one that was killed for its silence, and Stopped."""
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
                raise WorkerDied(HUNG.name, f"the worker sent no heartbeat for {silent_s:.0f} s while {DOING[phase]}")

    def _stop(self, now: float) -> None:
        """Training is asked to save its step; anything else is made again from the last checkpoint. Raises Stopped."""
        assert self._worker
        if self._stop_by is None:
            if self._watchdog.phase != "step":
                raise Stopped
            self._stop_by = now + STOP_GRACE_S
            self._worker.ask_to_stop()
        elif now >= self._stop_by:
            raise Stopped
