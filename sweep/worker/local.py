"""The driver's end of a worker on this machine: a child process in a session of its own."""

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from sweep.events import Message, Order, Pack, Setup, Stop, decode, encode_order
from sweep.failures import HOST_OOM, HUNG, KILLED

COMMAND = ("-P", "-m", "sweep.worker")  # what Python runs as a worker
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # a worker never downloads anything
END_S = 2.0  # for a killed process to be gone; Ctrl-C is answered within 10 s in all
# For a crashed process, which writes its core dump and frees GPU memory after its pipes are closed.
CRASH_S = 30.0
LOOK_S = 0.05  # between two polls of its exit code


class WorkerDied(RuntimeError):
    """The worker is gone or unusable; `reason` is the class of failure, the message says how it ended."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Sign(Enum):
    """What the inbox holds besides messages: WOKEN interrupts a waiting reader, GONE ends the stream."""

    WOKEN = auto()
    GONE = auto()


class LocalWorker:
    """A worker process, and messages to and from it.

    Its process starts at once, so that its imports run while the driver does other things. It has a process
    session of its own: Ctrl-C reaches only the driver, which decides what to do.
    """

    def __init__(self, log: Path, setup: Setup) -> None:
        self._oom_kills = _oom_kills()
        self._woken = False
        with log.open("ab") as handle:
            self._process = subprocess.Popen(
                [sys.executable, *COMMAND, *setup.arguments()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
                encoding="utf-8",
                start_new_session=True,
                env=os.environ | OFFLINE,
            )
        # Its own thread reads, so that the driver can wait for an event, a deadline and a signal at once.
        self._inbox: queue.SimpleQueue[Message | _Sign] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, pack: Pack) -> None:
        """Hand over a pack of trials. Raises WorkerDied."""
        self._write(pack)

    def ask_to_stop(self) -> None:
        """Have the worker finish its step, save a checkpoint and end; its last event is `Stopped`."""
        with suppress(WorkerDied):
            self._write(Stop())

    def wake(self) -> None:
        """Interrupt a waiting `next_message`, which then returns None; safe in a signal handler."""
        self._woken = True
        self._inbox.put(_Sign.WOKEN)

    @property
    def waiting(self) -> bool:
        """Whether there are unread messages, as after a pause of the driver (Ctrl-Z)."""
        assert self._process.stdout
        return not self._inbox.empty() or bool(select.select([self._process.stdout], [], [], 0)[0])

    def next_message(self, timeout_s: float) -> Message | None:
        """The next message; None after `timeout_s` or `wake`. Raises WorkerDied when there can be no more."""
        try:
            found = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if found is _Sign.GONE:
            self._inbox.put(_Sign.GONE)  # whoever asks again gets the same answer
            raise self._how_it_died()
        return None if found is _Sign.WOKEN else found

    def close(self) -> None:
        """End the worker's whole process group."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(END_S)
        # Stuck in a device or a network folder, where SIGKILL takes effect only later: wait neither for it
        # nor for the thread that still reads from it.
        except subprocess.TimeoutExpired:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(BrokenPipeError):  # an order that the dead worker never read
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout
        # The pipe was closed, or the last line is incomplete, or no event that we know.
        with suppress(ValueError, KeyError, TypeError):
            for line in self._process.stdout:
                self._inbox.put(decode(line))
        self._inbox.put(_Sign.GONE)

    def _write(self, order: Order) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(encode_order(order))
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed
            raise self._how_it_died() from None

    def _how_it_died(self) -> WorkerDied:
        began = time.monotonic()
        while (code := self._process.poll()) is None:
            if time.monotonic() - began >= (END_S if self._woken else CRASH_S):
                return WorkerDied(HUNG.name, "the worker closed its pipes and does not end")
            time.sleep(LOOK_S)
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return WorkerDied(HOST_OOM.name, "the machine ran out of memory and killed the worker")
        if code < 0:
            return WorkerDied(KILLED.name, f"the worker was killed by {signal.Signals(-code).name}")
        return WorkerDied(KILLED.name, f"the worker ended with exit code {code}")


def _oom_kills() -> int:
    """How many processes of this container or machine were killed for lack of memory; 0 if unknown."""
    for place in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with suppress(OSError, ValueError):
            facts = Path(place).read_text(encoding="ascii").split()
            return int(facts[facts.index("oom_kill") + 1])
    return 0
