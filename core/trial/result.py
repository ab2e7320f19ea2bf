"""What one trial came to."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from core.trial.spec import TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one trial came to; this is result.json, written last.

    `state` is complete or failed; a failed trial has `reason` (a class such as nan_loss) and `message`, no
    scores. `encoded` counts what this trial had to encode anew (pictures, texts, scores); the cache had the
    rest. `retried` names how earlier attempts ended; `same_as` is the trial with exactly these parameters
    that was run. `aesthetic` holds one score per scene, 1 to 10; `coherence` the mean cosine between the
    pictures' CLIP embeddings. `threads` is how many a CPU computed with: the order of its sums, and so the
    last bits, depend on it. `scoring_version` is core.verdict's; None where nothing was scored, and in files
    older than it.
    """

    state: Literal["complete", "failed"]
    spec: TrialSpec
    reason: str | None = None
    message: str | None = None
    aesthetic: tuple[float, ...] = ()
    aesthetic_mean: float | None = None
    aesthetic_min: float | None = None
    aesthetic_std: float | None = None
    coherence: float | None = None
    passed_gate: bool = False
    train_loss: float | None = None
    images: int = 0
    lora_sha256: str | None = None
    duration_s: float = 0.0
    scorer: str = ""
    scoring_version: int | None = None
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    micro_batch: int = 1
    retried: tuple[str, ...] = ()
    same_as: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    encoded: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(
            **values
            | {
                "spec": TrialSpec.from_json(values["spec"]),
                "aesthetic": tuple(values["aesthetic"]),
                "retried": tuple(values.get("retried", ())),
            }
        )
