"""The time of day by which a sweep shall be done."""
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.errors import UserError


@dataclass(frozen=True, slots=True)
class Hour:
    """When to stop: its name for the user, and the moment by time.time: the clock that the user named it by. It goes on while a
    laptop sleeps, which time.monotonic does not (clock_gettime(2))."""
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

    `now` is naive local time; the answer too, so that a night with a change of the clock is counted by the clock.
    """
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", written):
        raise UserError(f"--until is {written!r}, but it must be a time of day (allowed: 00:00 to 23:59)")
    hour, minute = map(int, written.split(":"))
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def clock(moment: datetime) -> str:
    """`07:00 (UTC+02:00)`: naive local time, with the zone that this machine counts it in; a container's is often UTC."""
    return f"{moment:%H:%M} (UTC{moment.astimezone().isoformat(timespec='minutes')[-6:]})"


def seconds_until(moment: datetime, now: datetime) -> float:
    """Both naive local times; seconds that really pass between them, also where the clock is changed."""
    return moment.timestamp() - now.timestamp()
