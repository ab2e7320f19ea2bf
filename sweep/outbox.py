"""What waits to be sent: one thread sends it in order, again and again, so that a slow or dead receiver holds nobody up."""
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two tries at a receiver that takes nothing


class Refused(Exception):
    """The receiver answered that it will never take this; what waits behind it need not wait for it."""


class Outbox:
    """Sends by key, in the order in which the keys came; each must bear being repeated.

    A newer send under a key takes the place of the one that waits: it says all that the older one said. Nothing is kept
    beyond this process: what is put here lies on the disk already, in a form from which it can be put again.
    """

    def __init__(self, receiver: str, kept_in: str) -> None:
        self._receiver, self._kept_in = receiver, kept_in  # names, for the two lines that the user reads
        self._waiting: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._tries = 0
        self._error: Exception | None = None  # of the last try
        self._pause_s, self._not_before = 0.0, 0.0
        self._closed = False
        threading.Thread(target=self._run, name=f"outbox to {receiver}", daemon=True).start()

    def put(self, key: str, send: Callable[[], None]) -> None:
        with self._changed:
            self._waiting[key] = send
            self._changed.notify_all()

    def first_error(self, timeout_s: float) -> Exception | None:
        """What the first try came to; None also if it takes longer than `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._tries > 0, timeout_s)
            return self._error

    def flush(self, timeout_s: float) -> bool:
        """Try at once and wait until all is sent; False if some still waits after `timeout_s`."""
        with self._changed:
            self._pause_s = self._not_before = 0.0
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

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
            except Exception as failure:  # whatever a client raises for a dead, slow, full or foreign receiver: try again
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
                log.warning("%s takes nothing at the moment (%s); the sweep goes on, what is to be sent stays in %s",
                            self._receiver, error, self._kept_in)
            elif self._error and not error:
                log.warning("%s answers again; sending what waited", self._receiver)
            self._error = error
            if error:
                self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + self._pause_s
            else:
                self._pause_s = 0.0
                if self._waiting.get(key) is send:  # else a newer one came meanwhile
                    del self._waiting[key]
            self._changed.notify_all()
