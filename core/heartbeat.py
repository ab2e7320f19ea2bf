"""The heartbeat of long work between its steps, and where it learns that it is to stop."""

from collections.abc import Callable

# called after each step of training or drawing; raises Interrupted when it is time to stop
Beat = Callable[[], None]


class Interrupted(Exception):
    """Asked to stop: what was reached is saved, and the same words go on from there."""


def no_beat() -> None:
    """For work that nobody watches."""
