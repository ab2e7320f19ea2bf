"""What waits to be sent: one thread sends it in order, again and again, so that a slow or dead receiver holds
nobody up.
"""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two tries at a receiver that takes nothing
LOOK_S = 0.2  # between two looks at whether the user asked to stop
STOPPED_S = 2.0  # what an end may still take then


class Refused(Exception):
    """The receiver answered that it will never take this; what waits behind it need not wait for it."""


def never() -> bool:
    return False


class Outbox:
    """Sends by key, in the order in which the keys came; each must bear being repeated.

    A newer send under a key takes the place of the one that waits: it says all that the older one said.
    Nothing is kept beyond this process: what is put here lies on the disk already, in a form from which it
    can be put again.
    """

    def __init__(self, receiver: str, kept_in: str) -> None:
        self._receiver, self._kept_in = receiver, kept_in  # names, for the two lines that the user reads
        self._waiting: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._tries = 0
        self._error: Exception | None = None  # of the last try
        self._pause_s, self._not_before = 0.0, 0.0
        self._moved_at = 0.0  # when something was last seen to be sent; ahead of now for what takes its time
        self._closed = False

    def start(self) -> None:
        """Begin to send."""
        threading.Thread(target=self._run, name=f"outbox to {self._receiver}", daemon=True).start()

    def put(self, key: str, send: Callable[[], None]) -> None:
        with self._changed:
            self._waiting[key] = send
            self._changed.notify_all()

    def moves(self, takes_s: float = 0.0) -> None:
        """A part of a send has arrived, or one that may take `takes_s` is under way; not for a part that is
        repeated.
        """
        with self._changed:
            self._moved_at = time.monotonic() + takes_s

    def first_error(self, timeout_s: float, stop_asked: Callable[[], object] = never) -> Exception | None:
        """What the first try came to; None also if it takes longer than `timeout_s`, or until `stop_asked`."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not self._tries and not stop_asked() and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(min(left_s, LOOK_S))
            return self._error

    def flush(self, patience_s: float, stop_asked: Callable[[], object] = never) -> bool:
        """Try at once and wait until all is sent; False once nothing moved for `patience_s`, or soon after
        `stop_asked`.
        """
        began, last, told = time.monotonic(), float("inf"), False
        with self._changed:
            self._pause_s = self._not_before = 0.0
            self._changed.notify_all()
            while self._waiting:
                now = time.monotonic()
                if stop_asked():
                    last = min(last, now + STOPPED_S)
                left_s = min(max(began, self._moved_at) + patience_s, last) - now
                if left_s <= 0:
                    return False
                if now - began > patience_s and not told:
                    log.warning(
                        "%s is slow, waiting until it has everything; Ctrl-C ends this, the same command sends the rest",
                        self._receiver,
                    )
                    told = True
                self._changed.wait(min(left_s, LOOK_S))
            return True

    def close(self) -> None:
        """Try nothing more; a send that is at work ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while following := self._next():
            key, send = following
            error: Exception | None = None
            try:
                send()
            except Refused as refusal:
                log.warning("%s refuses %s: %s", self._receiver, key, refusal)
            # whatever a client raises for a dead, slow, full or foreign receiver: try again
            except Exception as failure:
                error = failure
            self._settle(key, send, error)

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """The first that waits, once it is time; None when closed."""
        with self._changed:
            while not self._closed:
                pause_s = self._not_before - time.monotonic()
                if self._waiting and pause_s <= 0:
                    return next(iter(self._waiting.items()))
                self._changed.wait(pause_s if self._waiting else None)
            return None

    def _settle(self, key: str, send: Callable[[], None], error: Exception | None) -> None:
        with self._changed:
            self._tries += 1
            if error and not self._error:
                log.warning(
                    "%s takes nothing at the moment (%s); the sweep goes on, what is to be sent stays in %s",
                    self._receiver,
                    error,
                    self._kept_in,
                )
            elif self._error and not error:
                log.warning("%s answers again; sending what waited", self._receiver)
            self._error = error
            if error:
                self._moved_at = min(self._moved_at, time.monotonic())
                self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + self._pause_s
            else:
                self._pause_s, self._moved_at = 0.0, time.monotonic()
                if self._waiting.get(key) is send:  # else a newer one came meanwhile
                    del self._waiting[key]
            self._changed.notify_all()
