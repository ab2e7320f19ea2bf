"""What differs between the values of two starts of a study, and how that is shown to the user."""

import re

from core.fingerprint import Changes
from sweep.study.errors import SHOWN_CHARACTERS, shown
from sweep.study.setting import HOMES

MOVABLE = {f"{home}.{name}" for name, home in HOMES.items()}  # keys of settings that may be searched
ABSENT, SEARCHED = "not there", "searched"


def changes_between(before: dict[str, object], now: dict[str, object]) -> Changes:
    """The keys whose values differ, with both values; a missing one is SEARCHED if it may be searched."""

    def value(values: dict[str, object], key: str) -> object:
        return values.get(key, SEARCHED if key in MOVABLE else ABSENT)

    return {
        key: (value(before, key), value(now, key))
        for key in dict.fromkeys((*before, *now))
        if value(before, key) != value(now, key)
    }


def without_moves(changes: Changes) -> Changes:
    """The changes without those of settings that only moved between `space` and their fixed place."""
    return {key: values for key, values in changes.items() if key not in MOVABLE or SEARCHED not in values}


def described(changes: Changes) -> str:
    """Changes in short: `story.scenes[3].prompt ('a' -> 'b') and 2 more`."""
    key, values = next(iter(changes.items()))
    more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f"{key} ({' -> '.join(_short(*values))}){more}"


def _short(before: object, now: object) -> tuple[str, str]:
    """Both values as text; of hashes the first digits, of long texts the part that differs."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return shown(before), shown(now)
    if re.fullmatch(r"[0-9a-f]{64}", before) or re.fullmatch(r"[0-9a-f]{64}", now):
        return before[:12], now[:12]
    same = next(
        (i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old != new),
        min(len(before), len(now)),
    )
    if same > SHOWN_CHARACTERS // 2:
        return shown(f"...{before[same - 10 :]}"), shown(f"...{now[same - 10 :]}")
    return shown(before), shown(now)
