"""The leaderboard of a study: one row for each finished trial, under the base model's own row."""
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from core.folders import StudyFolder, TrialFolder
from core.settings import Filters, Result, setting_names

BASE = "base"  # the `trial` of the base model's row: no LoRA, same prompts and seeds
TRAINED = ("lora_rank", "lora_alpha", "epochs", "learning_rate")
SCORES = ("aesthetic_mean", "aesthetic_min", "aesthetic_std", "coherence")
DTYPES = {"lora_rank": "Int64", "epochs": "Int64", "images": "Int64", "lora_alpha": "float64",
          "learning_rate": "float64", "duration_s": "float64"} | dict.fromkeys(SCORES, "float64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Trials whose scores compare, ranked: those from one accepted change to the next. `until` is the first trial after the next
    change, None in the newest group; `base` the base model's story that they compare with, None where it was not made anew."""
    until: int | None
    base: TrialFolder | None
    results: list[Result]

    @property
    def name(self) -> str:
        """The base model's row of this group."""
        return BASE if self.until is None else f"{BASE} <{self.until}"


def groups(study: StudyFolder) -> list[Group]:
    """The newest first; older ones only where they have trials."""
    starts = sorted({0, *(change.from_trial for change in study.changes())})
    finished = study.results()
    found: list[Group] = []
    told: set[TrialFolder] = set()
    for start, until in reversed(list(zip(starts, [*starts[1:], None], strict=True))):
        results = sorted((result for result in finished
                          if result.spec.number >= start and (until is None or result.spec.number < until)), key=_rank)
        base = study.base_of(max((result.spec.number for result in results), default=start))
        if until is None or results:
            found.append(Group(until=until, base=base if base.read_result() and base not in told else None, results=results))
            told.add(base)
    return found


def leaderboard(study: StudyFolder) -> pd.DataFrame:
    """Base model first, then the stories that passed by falling mean, those that did not, and failed trials; after them
    all those from before a change that was accepted, for their scores do not compare, under the base model's story of then.

    Settings outside `TRAINED` have a column only where trials differ in them. Scores from 1 to 10; absent is NaN or None.
    """
    searched = searched_settings(ranked(study))
    rows = []
    for group in groups(study):
        if base := group.base.read_result() if group.base else None:
            rows.append(_row(group.name, base, searched, group))
        rows += [_row(result.spec.number, result, searched, group) for result in group.results]
    columns = ["trial", "state", "gate", *SCORES, *TRAINED, "images", *searched, "duration_s", "reason", "message"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.astype(DTYPES)


def winner(study: StudyFolder) -> Result | None:
    """The story that passed the gate with the highest mean; the earlier trial of two equals."""
    return next(iter(passed(study)), None)


def passed(study: StudyFolder) -> list[Result]:
    """The stories that passed the gate, best first; none whose score does not compare with the newest."""
    return [result for result in groups(study)[0].results if result.passed_gate]


def ranked(study: StudyFolder) -> list[Result]:
    """Every finished trial in the leaderboard's order."""
    return [result for group in groups(study) for result in group.results]


def is_base(trial: int | str) -> bool:
    """Whether a row is the base model's, of whichever group."""
    return isinstance(trial, str)


def searched_settings(trials: list[Result]) -> list[str]:
    """Settings beside `TRAINED` in which the trials differ, filters last."""
    params = [result.spec.params() for result in trials]
    differing = [name for name in (params[0] if params else ())
                 if name not in TRAINED and len({setting[name] for setting in params}) > 1]
    return sorted(differing, key=lambda name: name in setting_names(Filters))


def gate_word(result: Result, group: Group) -> str:
    """`pass`, `fail`, `older` from before an accepted change, where no score compares, or nothing where there is none."""
    if result.state == "failed":
        return ""
    if group.until is not None:
        return "older"
    return "pass" if result.passed_gate else "fail"


def _rank(result: Result) -> tuple[int, float, int]:
    """Sort key: passed, then under the gate, each by falling mean; then failed. Equals stand by trial number."""
    if result.aesthetic_mean is None:
        return 2, 0.0, result.spec.number
    return 0 if result.passed_gate else 1, -result.aesthetic_mean, result.spec.number


def _row(trial: int | str, result: Result, searched: list[str], group: Group) -> dict[str, Any]:
    params = result.spec.params() if result.spec.train else asdict(result.spec.render)  # no pictures, no filters
    trained = result.spec.train and result.state == "complete"
    return {
        "trial": trial, "state": result.state, "gate": gate_word(result, group),
        **{name: getattr(result, name) for name in SCORES},
        **{name: params.get(name) for name in (*TRAINED, *searched)},
        "images": result.images if trained else None, "duration_s": result.duration_s, "reason": result.reason,
        "message": result.message if result.same_as is None else f"an exact repeat of trial {result.same_as}, with its result",
    }
