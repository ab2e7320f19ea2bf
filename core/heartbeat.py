"""The callback that long work calls after each step, which may stop it; silence is noticed in
sweep/worker/supervisor.py.
"""

from collections.abc import Callable

# called after each step of training or rendering, and each text or image encoded; raises Interrupted when
# the work is to stop
Heartbeat = Callable[[], None]


class Interrupted(Exception):
    """The work was asked to stop. A training has saved its state, from which the same command resumes."""


def no_heartbeat() -> None:
    """A heartbeat that does nothing, for work outside a worker process."""
