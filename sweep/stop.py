"""Being asked to stop: Ctrl-C, SIGTERM, or a batch system's warning; the first asks, the second insists."""
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """The sweep was asked to stop and has left everything resumable."""


@contextmanager
def asked_by_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """Call `stop(name of the signal)` on the first one; the second raises KeyboardInterrupt where it stands."""
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop(signal.Signals(number).name)

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
