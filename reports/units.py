"""Numbers as people read them: durations, sizes, counts."""

import json
from collections.abc import Mapping

from core.trial.spec import Value

MAX_NUMBERS = 6


def duration(seconds: float) -> str:
    """`4.2 s`, `87 s`, `45 min`, `2.3 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def numbered(trials: list[int]) -> str:
    """trial 3; trials 3, 4 and 5; trials 3, 4, 5 and 9 more."""
    if len(trials) == 1:
        return f"trial {trials[0]}"
    shown = trials[:MAX_NUMBERS] if len(trials) > MAX_NUMBERS + 1 else trials[:-1]
    last = f"{len(trials) - len(shown)} more" if len(shown) < len(trials) - 1 else str(trials[-1])
    return f"trials {', '.join(map(str, shown))} and {last}"


def size(count_bytes: float) -> str:
    """Decimal, as disks are sold: 93 MB, 1.2 GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_bytes >= 0.9995 * one:
            return f"{count_bytes / one:.{0 if count_bytes >= 9.95 * one else 1}f} {unit}"
    return f"{count_bytes:.0f} B"


def describe(params: Mapping[str, Value]) -> str:
    """Sampled parameters on one line: `lora_rank 8, learning_rate 0.0021`."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {json.dumps(value).strip(chr(34))}"
        for name, value in params.items()
    )
