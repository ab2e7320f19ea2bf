"""When to stop: at a signal (a second one stops at once), or at the time of day that the user named."""

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
    """Why a sweep stops early; `name` is the signal's name, or the hour that was asked for, such as 07:00."""

    name: str
    by_signal: bool


class Stopped(Exception):
    """The sweep was asked to stop; everything is resumable."""


@contextmanager
def asked_by_signal(stop: Callable[[StopRequest], None]) -> Iterator[None]:
    """Call `stop` at the first signal; the second raises KeyboardInterrupt in the code that runs."""
    # Only the main thread may set handlers.
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

    # Signals that the shell set to be ignored (nohup, a background job) stay ignored.
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
    """Have each of `SIGNALS` end the command as Ctrl-C does; for the time before a sweep has begun."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


@dataclass(frozen=True, slots=True)
class Hour:
    """An hour to stop at: `name` as the user wrote it, `moment` in seconds since 1970.

    Compared with time.time, which goes on while a laptop sleeps; time.monotonic does not (clock_gettime(2)).
    """

    name: str
    moment: float

    @property
    def left_s(self) -> float:
        """Seconds until then; negative if it is over."""
        return self.moment - time.time()


def hour(written: str) -> Hour:
    """The next `HH:MM` from now on. Raises UserError."""
    return Hour(written, deadline(written, datetime.now()).timestamp())


def deadline(written: str, now: datetime) -> datetime:
    """The next `HH:MM` after `now`, on this machine's clock. Raises UserError.

    Both are naive local times: across a change of daylight-saving time the displayed time counts.
    """
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", written):
        raise UserError(f"--until is {written!r}, but it must be a time of day (allowed: 00:00 to 23:59)")
    hour, minute = map(int, written.split(":"))
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def clock(moment: datetime) -> str:
    """A naive local time as `07:00 (UTC+02:00)`, in this machine's zone: in containers often UTC."""
    return f"{moment:%H:%M} (UTC{moment.astimezone().isoformat(timespec='minutes')[-6:]})"


def seconds_until(moment: datetime, now: datetime) -> float:
    """Seconds that really pass between two naive local times, also where the clock is changed."""
    return moment.timestamp() - now.timestamp()
