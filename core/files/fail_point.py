"""Named places where a test makes the process fail: killed, stopped, out of memory, out of disk.

Without the variable LORA_SWEEP_FAIL every point is a lookup in the environment and nothing else. It holds
orders, apart by `;`: `point=action` the first time that a process passes there, `point@3=action` the third
time, `point#2@3=action` in trial 2, each of them once for all processes together if LORA_SWEEP_FAIL_ONCE
names a file (made, with the order's number, when the point fires); and `point#2=action` always in trial 2,
`point#*=action` in every trial.

Actions are signals for this process (SIGKILL) or, from a worker, for its parent (driver_SIGINT), joined by
`+`; or disk_full, oom, device_lost; nan, which the caller acts on; anything else is an unforeseen mistake.
Only tests set them.
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
    """The trial that this process is at."""
    global _trial
    _trial = number


def fail_point(name: str) -> str | None:
    """Do what the environment asks of the point `name`, and say what; usually nothing."""
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
            signal.pause()  # its own end follows, for nobody reads its events
    elif action == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory (asked for by a test)")
    elif action == "device_lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered (asked for by a test)")
    elif action != "nan":
        raise RuntimeError(f"{action} at {name} (asked for by a test)")
