"""The callback that long work calls after each step, which may stop it; silence is noticed in
sweep/worker/supervisor.py.
"""

from collections.abc import Callable

# called after each step of training or rendering; raises Interrupted when the work is to stop
Heartbeat = Callable[[], None]


class Interrupted(Exception):
    """The work was asked to stop; its state is saved, and the same command resumes from it."""


def no_heartbeat() -> None:
    """A heartbeat that does nothing, for work outside a worker process."""
