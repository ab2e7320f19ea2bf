"""A queue of uploads: one thread sends them in order and retries, so that a slow or dead receiver blocks
nobody else.
"""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two retries while the receiver fails
LOOK_S = 0.2  # between two looks at whether the user asked to stop
STOPPED_S = 2.0  # how long a flush may still take then


class Rejected(Exception):
    """The receiver answered that it will never take this: it is dropped, and the next one is sent."""


def never() -> bool:
    """The `stop_asked` of a caller that never stops early."""
    return False


class Outbox:
    """Uploads by key, in the order in which the keys came; each must be idempotent.

    A newer upload under a key replaces the one that waits, and must include all that the older one sends.
    The queue is lost with this process: what is put here is on the disk already, and the next start can put
    it again.
    """

    def __init__(self, receiver: str, kept_in: str) -> None:
        self._receiver, self._kept_in = receiver, kept_in  # names, for the log lines
        self._waiting: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._tries = 0
        self._error: Exception | None = None  # of the last attempt
        self._pause_s, self._not_before = 0.0, 0.0
        self._moved_at = 0.0  # time of the last progress; in the future while a slow part is under way
        self._closed = False

    def start(self) -> None:
        """Start the thread that sends."""
        threading.Thread(target=self._run, name=f"outbox to {self._receiver}", daemon=True).start()

    def put(self, key: str, send: Callable[[], None]) -> None:
        """Queue an upload; `send` runs in the outbox's thread, and an exception of it means a retry."""
        with self._changed:
            self._waiting[key] = send
            self._changed.notify_all()

    def progressed(self, takes_s: float = 0.0) -> None:
        """Report progress: a part of an upload has arrived, or one that may take `takes_s` seconds has
        started. Not to be called for a part that is retried.
        """
        with self._changed:
            self._moved_at = time.monotonic() + takes_s

    def first_error(self, timeout_s: float, stop_asked: Callable[[], object] = never) -> Exception | None:
        """The error of the first attempt; None if it succeeded, or if `timeout_s` passed or `stop_asked` came
        first.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while not self._tries and not stop_asked() and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(min(left_s, LOOK_S))
            return self._error

    def flush(self, patience_s: float, stop_asked: Callable[[], object] = never) -> bool:
        """Send without further pause and wait until the queue is empty -> False if there was no progress for
        `patience_s` seconds, or soon after `stop_asked`.
        """
        began, last, warned = time.monotonic(), float("inf"), False
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
                if now - began > patience_s and not warned:
                    log.warning(
                        "%s is slow, waiting until it has everything; Ctrl-C ends this, the same command "
                        "sends the rest",
                        self._receiver,
                    )
                    warned = True
                self._changed.wait(min(left_s, LOOK_S))
            return True

    def close(self) -> None:
        """Send nothing more; an upload that is under way ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while following := self._next():
            key, send = following
            error: Exception | None = None
            try:
                send()
            except Rejected as refusal:
                log.warning("%s refuses %s: %s", self._receiver, key, refusal)
            # whatever a client raises for a dead, slow, full or foreign receiver: retry
            except Exception as failure:
                error = failure
            self._settle(key, send, error)

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """The first in the queue, once the pause is over; None when closed."""
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
