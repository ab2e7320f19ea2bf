"""Named places where a test makes the process fail: killed, stopped, out of memory, out of disk.

Only tests set the environment variable LORA_SWEEP_FAIL; without it a point does nothing. It holds orders
separated by `;`:

    point=action      the first time that a process passes the point
    point@3=action    the third time
    point#2@3=action  the third time in trial 2
    point#2=action    every time in trial 2
    point#*=action    every time in any trial

If LORA_SWEEP_FAIL_ONCE names a file, each of the first three fires in one process only, the first to create
that file with the order's number appended.

Actions, joined by `+`: a signal for this process (SIGKILL) or, in a worker, for its parent (driver_SIGINT);
disk_full, oom, device_lost raise what the machine would; nan is left to the caller; any other name raises a
RuntimeError.
"""

import errno
import os
import re
import signal
from collections import Counter

_passed: Counter[int] = Counter()
_trial: int | None = None
ORDER = re.compile(r"(?P<point>.+?)(?:#(?P<trial>\d+|\*))?(?:@(?P<count>\d+))?=(?P<action>.+)")


def at_trial(number: int) -> None:
    """Note which trial this process is working on, for orders that name one."""
    global _trial  # noqa: PLW0603  a worker is at one trial at a time
    _trial = number


def fail_point(name: str) -> str | None:
    """Carry out the order for the point `name` that is due, and return its action; None if there is none."""
    orders = os.environ.get("LORA_SWEEP_FAIL")
    if orders is None:
        return None
    for index, order in enumerate(orders.split(";")):
        asked = ORDER.fullmatch(order)
        assert asked, f"LORA_SWEEP_FAIL has {order!r}"
        if asked["point"] == name and _due(index, asked["trial"], asked["count"]):
            for action in asked["action"].split("+"):
                _act(name, action)
            return asked["action"]
    return None


def _due(index: int, trial: str | None, count: str | None) -> bool:
    if trial and (_trial is None or _trial < 0 or trial not in ("*", str(_trial))):
        return False
    if trial and not count:
        return True
    _passed[index] += 1
    return _passed[index] == int(count or 1) and _first_time(index)


def _first_time(index: int) -> bool:
    marker = os.environ.get("LORA_SWEEP_FAIL_ONCE")
    if not marker:
        return True
    try:
        os.close(os.open(f"{marker}.{index}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _act(name: str, action: str) -> None:
    if action.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[action])
    elif action.startswith("driver_"):
        os.kill(os.getppid(), signal.Signals[action.removeprefix("driver_")])
        if action == "driver_SIGKILL":
            signal.pause()  # the worker ends when it finds its parent gone
    elif action == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory (asked for by a test)")
    elif action == "device_lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered (asked for by a test)")
    elif action != "nan":
        raise RuntimeError(f"{action} at {name} (asked for by a test)")
