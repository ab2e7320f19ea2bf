"""The leaderboard of a study: one row for each finished trial, under the base model's own row."""
from dataclasses import asdict
from typing import Any

import pandas as pd

from core.folders import StudyFolder
from core.settings import Filters, Result, setting_names

BASE = "base"  # the `trial` of the base model's row: no LoRA, same prompts and seeds
TRAINED = ("lora_rank", "lora_alpha", "epochs", "learning_rate")
SCORES = ("aesthetic_mean", "aesthetic_min", "aesthetic_std", "coherence")
DTYPES = {"lora_rank": "Int64", "epochs": "Int64", "images": "Int64", "lora_alpha": "float64",
          "learning_rate": "float64", "duration_s": "float64"} | dict.fromkeys(SCORES, "float64")


def leaderboard(study: StudyFolder) -> pd.DataFrame:
    """Base model first, then the stories that passed by falling mean, those that did not, and failed trials; after them
    all those from before a change that was accepted, for their scores do not compare.

    Settings outside `TRAINED` have a column only where trials differ in them. Scores from 1 to 10; absent is NaN or None.
    """
    trials, since = ranked(study), study.compares_from()
    searched = searched_settings(trials)
    base = study.base.read_result()
    rows = [_row(BASE, base, searched, since)] if base else []
    rows += [_row(result.spec.number, result, searched, since) for result in trials]
    columns = ["trial", "state", "gate", *SCORES, *TRAINED, "images", *searched, "duration_s", "reason", "message"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.astype(DTYPES)


def winner(study: StudyFolder) -> Result | None:
    """The story that passed the gate with the highest mean; the earlier trial of two equals."""
    return next(iter(passed(study)), None)


def passed(study: StudyFolder) -> list[Result]:
    """The stories that passed the gate, best first; none whose score does not compare with the newest."""
    since = study.compares_from()
    return [result for result in ranked(study) if result.passed_gate and result.spec.number >= since]


def ranked(study: StudyFolder) -> list[Result]:
    """Every finished trial in the leaderboard's order."""
    since = study.compares_from()
    return sorted(study.results(), key=lambda result: (result.spec.number < since, *_rank(result)))


def searched_settings(trials: list[Result]) -> list[str]:
    """Settings beside `TRAINED` in which the trials differ, filters last."""
    params = [result.spec.params() for result in trials]
    differing = [name for name in (params[0] if params else ())
                 if name not in TRAINED and len({setting[name] for setting in params}) > 1]
    return sorted(differing, key=lambda name: name in setting_names(Filters))


def gate_word(result: Result, since: int) -> str:
    """`pass`, `fail`, `older` for a trial before `since`, whose score does not compare, or nothing where there is none."""
    if result.state == "failed":
        return ""
    if result.spec.train and result.spec.number < since:  # the base model's story is told again after a change
        return "older"
    return "pass" if result.passed_gate else "fail"


def _rank(result: Result) -> tuple[int, float, int]:
    """Sort key: passed, then under the gate, each by falling mean; then failed. Equals stand by trial number."""
    if result.aesthetic_mean is None:
        return 2, 0.0, result.spec.number
    return 0 if result.passed_gate else 1, -result.aesthetic_mean, result.spec.number


def _row(trial: int | str, result: Result, searched: list[str], since: int) -> dict[str, Any]:
    params = result.spec.params() if result.spec.train else asdict(result.spec.render)  # no pictures, no filters
    trained = result.spec.train and result.state == "complete"
    return {
        "trial": trial, "state": result.state, "gate": gate_word(result, since),
        **{name: getattr(result, name) for name in SCORES},
        **{name: params.get(name) for name in (*TRAINED, *searched)},
        "images": result.images if trained else None, "duration_s": result.duration_s, "reason": result.reason,
        "message": result.message if result.same_as is None else f"an exact repeat of trial {result.same_as}, with its result",
    }
