"""The result of one trial."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from core.files.files import FORBID_UNKNOWN
from core.trial.spec import TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The content of result.json, which is written last.

    `state` is complete or failed; a failed trial has `reason` (a class such as nan_loss) and `message`, but
    no scores. `aesthetic` holds one score per scene, 1 to 10; `coherence` is the mean cosine between the
    images' CLIP embeddings. `scoring_version` is core.verdict's; None where nothing was scored, and in files
    older than the field. `encoded` counts what was not in the cache yet (images, texts, scores). `retried`
    has the failure class of each earlier attempt. `same_as` is the number of the trial whose results these
    are, where it had exactly the same parameters. `processor` is the model of the CPU or GPU that computed
    (empty in files older than the field), `threads` the number of CPU threads, on which the order
    of sums and so the last bits depend.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN

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
    processor: str = ""
    threads: int | None = None
    micro_batch: int = 1
    retried: tuple[str, ...] = ()
    same_as: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    encoded: dict[str, int] = field(default_factory=dict)
