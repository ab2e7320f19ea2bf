"""The leaderboard of a study: one row for each finished trial, below the base model's own row."""

from dataclasses import asdict

import pandas as pd

from core.trial.result import Result
from core.trial.spec import Filters, Value, setting_names
from core.verdict import Group, Verdict

BASE = "base"  # the `trial` of the base model's row: no LoRA, same prompts and seeds
TRAINED = ("lora_rank", "lora_alpha", "epochs", "learning_rate")
SCORES = ("aesthetic_mean", "aesthetic_min", "aesthetic_std", "coherence")
DTYPES = dict.fromkeys(("lora_rank", "epochs", "images"), "Int64") | dict.fromkeys(
    ("lora_alpha", "learning_rate", "duration_s", *SCORES), "float64"
)


def leaderboard(verdict: Verdict) -> pd.DataFrame:
    """One row for each finished trial.

    Base model first, then trials that passed the gate, best mean first, those that did not, and failed ones.
    Below them, under the base model's story of that time, come trials from before an accepted change, whose
    scores do not compare. Settings outside `TRAINED` have a column only if trials differ in them. Scores are
    from 1 to 10; a missing value is NaN or None.
    """
    searched = searched_settings(verdict.ranked)
    rows = [_row(result, searched, group) for group in verdict.groups for result in stories(group)]
    settings = (*TRAINED, "images", *searched)
    columns = ["trial", "state", "gate", *SCORES, *settings, "duration_s", "reason", "message"]
    return pd.DataFrame(rows, columns=columns, dtype=object).astype(DTYPES)


def stories(group: Group) -> list[Result]:
    """The base model's own story, if the group has one, then its trials, best first."""
    base = group.base.result if group.base else None
    return [base, *group.results] if base else group.results


def row_name(result: Result, group: Group) -> int | str:
    """The `trial` of a row: its number, or for the base model's row a name in its group."""
    if result.spec.train:
        return result.spec.number
    return BASE if group.until is None else f"{BASE} <{group.until}"


def is_base(trial: int | str) -> bool:
    """Whether the `trial` of a row says that it is the base model's."""
    return isinstance(trial, str)


def searched_settings(trials: list[Result]) -> list[str]:
    """Settings beside `TRAINED` in which the trials differ, filters last."""
    params = [result.spec.params() for result in trials]
    differing = [
        name
        for name in (params[0] if params else ())
        if name not in TRAINED and len({setting[name] for setting in params}) > 1
    ]
    return sorted(differing, key=lambda name: name in setting_names(Filters))


def gate_word(result: Result, group: Group) -> str:
    """`pass` or `fail`; `older` for a trial from before an accepted change; empty for a failed trial."""
    if result.state == "failed":
        return ""
    if group.until is not None:
        return "older"
    return "pass" if result.passed_gate else "fail"


def _row(result: Result, searched: list[str], group: Group) -> dict[str, object]:
    # The base model was trained on no images, so it has no filters.
    params = result.spec.params() if result.spec.train else asdict(result.spec.render)
    trained = result.spec.train and result.state == "complete"
    message = result.message
    if result.same_as is not None:
        message = f"an exact repeat of trial {result.same_as}, with its result"
    return {
        "trial": row_name(result, group),
        "state": result.state,
        "gate": gate_word(result, group),
        **{name: getattr(result, name) for name in SCORES},
        **{name: params.get(name) for name in (*TRAINED, *searched)},
        "images": result.images if trained else None,
        "duration_s": result.duration_s,
        "reason": result.reason,
        "message": message,
    }


def cell(name: str, value: Value) -> str:
    """A setting or score for a table, rounded to three digits; a dash for None and NaN."""
    if pd.isna(value):
        return "–"
    if name in SCORES:
        return f"{value:.3f}"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
    return str(value)
