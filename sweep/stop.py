"""When to stop: a signal (the first asks, the second insists), or the time of day that the user named."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FrameType

from core.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


MORNING = "07:00"


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Why a sweep is to stop before its work is done: a signal, by its name, or else the hour asked for, such
    as 07:00.
    """

    name: str
    by_signal: bool


class Stopped(Exception):
    """The sweep was asked to stop and has left everything resumable."""


@contextmanager
def asked_by_signal(stop: Callable[[StopRequest], None]) -> Iterator[None]:
    """Call `stop` on the first one; the second raises KeyboardInterrupt where it stands."""
    # Python delivers signals to the main thread only
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop(StopRequest(signal.Signals(number).name, by_signal=True))

    # What the shell had ignored (nohup, a background job) stays ignored.
    before = {
        number: signal.signal(number, handle)
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_by_keyboard() -> None:
    """Before a sweep has begun, every such signal ends the command as Ctrl-C does."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


@dataclass(frozen=True, slots=True)
class Hour:
    """When to stop: its name for the user, and the moment by time.time: the clock that the user named it by.
    It goes on while a laptop sleeps, which time.monotonic does not (clock_gettime(2))."""

    name: str
    moment: float

    @property
    def left_s(self) -> float:
        return self.moment - time.time()


def hour(written: str) -> Hour:
    """The next `HH:MM`. Raises UserError."""
    return Hour(written, deadline(written, datetime.now()).timestamp())


def deadline(written: str, now: datetime) -> datetime:
    """The next `HH:MM` after `now`, on this machine's clock. Raises UserError.

    `now` is naive local time; the answer too, so that a night with a change of the clock is counted by the
    clock.
    """
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", written):
        raise UserError(f"--until is {written!r}, but it must be a time of day (allowed: 00:00 to 23:59)")
    hour, minute = map(int, written.split(":"))
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def clock(moment: datetime) -> str:
    """`07:00 (UTC+02:00)`: naive local time, with the zone that this machine counts it in; a container's is
    often UTC.
    """
    return f"{moment:%H:%M} (UTC{moment.astimezone().isoformat(timespec='minutes')[-6:]})"


def seconds_until(moment: datetime, now: datetime) -> float:
    """Both naive local times; seconds that really pass between them, also where the clock is changed."""
    return moment.timestamp() - now.timestamp()
