"""Being asked to stop: Ctrl-C, SIGTERM, or a batch system's warning; the first asks, the second insists."""
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Why a sweep is to stop before its work is done: a signal, by its name, or else the hour asked for, such as 07:00."""
    name: str
    by_signal: bool


class Stopped(Exception):
    """The sweep was asked to stop and has left everything resumable."""


@contextmanager
def asked_by_signal(stop: Callable[[StopRequest], None]) -> Iterator[None]:
    """Call `stop` on the first one; the second raises KeyboardInterrupt where it stands."""
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
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
    before = {number: signal.signal(number, handle) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
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
