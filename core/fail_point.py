"""Named places where a test makes the process fail: killed, stopped, out of memory, out of disk.

Without the variable LORA_SWEEP_FAIL every point is a lookup in the environment and nothing else. Its forms:
`point=action`, `point@3=action` (the third time that the process passes), once for all processes together if
LORA_SWEEP_FAIL_ONCE names a file, which is made when the point fires; `point#2=action` (always in trial 2),
`point#*=action` (in every trial).

Actions are signals for this process (SIGKILL) or, from a worker, for its parent (driver_SIGINT), joined by `+`; or
disk_full, oom, device_lost; nan, which the caller acts on; anything else is an unforeseen mistake. Only tests set them.
"""
import errno
import os
import re
import signal
from collections import Counter

_passed: Counter[str] = Counter()
_trial: int | None = None


def at_trial(number: int) -> None:
    """The trial that this process is at."""
    global _trial
    _trial = number


def fail_point(name: str) -> str | None:
    """Do what the environment asks of the point `name`, and say what; usually nothing."""
    order = os.environ.get("LORA_SWEEP_FAIL", "")
    if not order.startswith(name):
        return None
    asked = re.fullmatch(r"(.+?)(?:@(\d+)|#(\d+|\*))?=(.+)", order)
    if asked is None or asked[1] != name or not _due(name, asked[2], asked[3]):
        return None
    for action in asked[4].split("+"):
        _act(name, action)
    return asked[4]


def _due(name: str, count: str | None, trial: str | None) -> bool:
    if trial:
        return _trial is not None and _trial >= 0 and trial in ("*", str(_trial))
    _passed[name] += 1
    return _passed[name] == int(count or 1) and _first_time()


def _first_time() -> bool:
    marker = os.environ.get("LORA_SWEEP_FAIL_ONCE")
    if not marker:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
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
