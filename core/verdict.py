"""Who wins: what passes the gate, which scores compare, and what the sampler is told. Pure functions over
results, no disk.
"""

from dataclasses import dataclass

from core.fingerprint import Change
from core.trial.result import Result

# Raise it with any change of training, rendering or scoring after which the same study, weights and seeds
# would score otherwise than before: a study that was started under another version is not gone on with
# unasked.
SCORING_VERSION = 2
CHALLENGE_GATE = 6.0  # the Kolors LoRA story challenge's own; a study may set another
BASE_PASSES = (
    "the base model's own story passes the gate already: compare a story with that mean, not with the gate"
)
FAILED_BY_PARAMETERS = 20.0


def passes(mean: float, gate: float) -> bool:
    return mean >= gate


def constraint(mean: float, gate: float) -> float:
    """What the sampler is told of a complete story, feasible at 0 or below: how far its mean is under the
    gate.
    """
    return gate - mean


def notes_on_gate(gate: float) -> list[str]:
    return (
        [f"objective.gate is {gate:g}, but the challenge's gate is {CHALLENGE_GATE:g}"]
        if gate != CHALLENGE_GATE
        else []
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseStory:
    """The base model's own story, which trials before `until` compare with; None: all that no earlier base
    story is for.

    `result` is None where it is not made yet or its file cannot be read.
    """

    until: int | None
    result: Result | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Trials whose scores compare, best first: those from one accepted change to the next. `until` is the
    first trial after the next change, None in the newest group; `base` the base model's story that they
    compare with, None where a newer group has the same one."""

    until: int | None
    base: BaseStory | None
    results: list[Result]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the finished trials of a study come to.

    `results` are in the order of their numbers, `changes` those after which scores do not compare, `bases`
    the base model's stories: those of before a change by their `until`, last the present one.
    """

    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    bases: tuple[BaseStory, ...]

    @property
    def comparable_since(self) -> int:
        """The first trial whose score compares with the newest."""
        return comparable_since(self.changes)

    @property
    def base(self) -> Result | None:
        """The base model's story that new trials compare with."""
        return self.bases[-1].result

    def base_of(self, number: int) -> BaseStory:
        """The base model's story that trial `number` compares with."""
        return next(base for base in self.bases if base.until is None or base.until > number)

    @property
    def groups(self) -> list[Group]:
        """The newest first; older ones only where they have trials."""
        starts = sorted({0, *(change.from_trial for change in self.changes)})
        found: list[Group] = []
        shown: set[int | None] = set()
        for start, until in reversed(list(zip(starts, [*starts[1:], None], strict=True))):
            results = sorted(
                (
                    result
                    for result in self.results
                    if result.spec.number >= start and (until is None or result.spec.number < until)
                ),
                key=_rank,
            )
            base = self.base_of(max((result.spec.number for result in results), default=start))
            if until is None or results:
                found.append(
                    Group(
                        until=until,
                        base=base if base.result and base.until not in shown else None,
                        results=results,
                    )
                )
                shown.add(base.until)
        return found

    @property
    def ranked(self) -> list[Result]:
        """Every finished trial in the leaderboard's order."""
        return [result for group in self.groups for result in group.results]

    @property
    def passed(self) -> list[Result]:
        """The stories that passed the gate, best first; none whose score does not compare with the newest."""
        return [result for result in self.groups[0].results if result.passed_gate]

    @property
    def winner(self) -> Result | None:
        """The story that passed the gate with the highest mean; the earlier trial of two equals."""
        return next(iter(self.passed), None)


def comparable_since(changes: tuple[Change, ...]) -> int:
    """The first trial whose score compares with the newest; before it words, pictures or weights were others."""
    return max((change.from_trial for change in changes), default=0)


def _rank(result: Result) -> tuple[int, float, int]:
    """Sort key: passed, then under the gate, each by falling mean; then failed. Equals stand by trial number."""
    if result.aesthetic_mean is None:
        return 2, 0.0, result.spec.number
    return 0 if result.passed_gate else 1, -result.aesthetic_mean, result.spec.number
