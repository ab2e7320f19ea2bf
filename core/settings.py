"""What one trial is told: plain values, no torch, the same words as in the study file, MLflow and the tables."""
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

PRECISIONS = ("fp32", "fp16", "bf16")
SIZE_STEP_PX = 64  # DiffSynth 1.1.9 rounds other sizes up (pipelines/base.py)
PROMPT = "{prompt}"  # in a caption template: the picture's own words


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the LoRA is trained; strength in training and use is `lora_alpha / lora_rank`."""
    lora_rank: int = 16
    lora_alpha: float = 4.0
    epochs: int = 1
    learning_rate: float = 1e-4
    steps_per_epoch: int = 100
    batch_size: int = 1
    lora_dropout: float = 0.0
    random_flip: bool = False
    target_modules: str = "to_q,to_k,to_v,to_out"
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def scale(self) -> float:
        """Strength of the adapters (Hu et al. 2021, section 4.1)."""
        return self.lora_alpha / self.lora_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How the story is drawn; `size_px` is the square picture's side, in training as in rendering."""
    steps: int = 50
    cfg_scale: float = 4.0
    size_px: int = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which pictures are trained on: Data-Juicer's image filters, same names and meaning, bounds inclusive.

    Widths and heights in px, ratio = width / height, sizes in bytes on disk, scores from 0 to 1 (aesthetic / 10).
    `subset` keeps the pictures of that name; `deduplicate` the first of pictures with an equal perceptual hash;
    `max_images` the best scored.
    """
    subset: str | None = None
    min_width: int = 1
    max_width: int | None = None
    min_height: int = 1
    max_height: int | None = None
    min_ratio: float = 0.333
    max_ratio: float = 3.0
    min_size: int = 1
    max_size: int | None = None
    min_score: float = 0.0
    max_score: float = 1.0
    deduplicate: Literal["phash", "dhash", "whash", "ahash", "none"] = "phash"
    max_images: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One picture of the story: the words as the prompter gets them, and the seed of its noise."""
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    title: str
    scenes: tuple[Scene, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the pictures are, which columns name them, and the caption template.

    `source` is a folder (core/data_folder.py says which layouts) or `modelscope:<data set>`, of which `subset` and
    `split` are loaded. A column that is None is found by its usual name.
    """
    source: str
    subset: str | None = None
    split: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    caption: str = PROMPT
    min_images: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """Everything a worker needs for one trial; `train` is None for the base model's own story.

    `precision` holds for training and rendering alike. `weights` is the folder of Kolors' weights, None the usual one.
    """
    study: str
    number: int
    seed: int
    backbone: str
    precision: str
    data: Data
    story: Story
    train: Training | None
    render: Rendering
    filters: Filters
    gate: float
    weights: str | None = None

    @property
    def name(self) -> str:
        """What people read."""
        return f"trial {self.number}" if self.train else "the base model's story"

    def params(self) -> dict[str, Any]:
        """Every setting of train, render and data.filters under its study key, for the tables."""
        trained = asdict(self.train) if self.train else {}
        return trained | asdict(self.render) | asdict(self.filters)

    def all_params(self) -> dict[str, Any]:
        """`params` and what all trials of a study share; of the data only the folder's name, for paths are private."""
        return {"backbone": self.backbone, "precision": self.precision, "seed": self.seed, "gate": self.gate,
                "data": Path(self.data.source).name, "caption": self.data.caption, "min_images": self.data.min_images,
                } | self.params()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        story = values["story"]
        return cls(**values | {
            "data": Data(**values["data"]),
            "story": Story(title=story["title"], scenes=tuple(Scene(**scene) for scene in story["scenes"])),
            "train": Training(**values["train"]) if values["train"] else None,
            "render": Rendering(**values["render"]),
            "filters": Filters(**values["filters"]),
        })


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one trial came to; this is result.json, written last.

    `state` is complete or failed; a failed trial has `reason` (a class such as nan_loss) and `message`, no scores.
    `encoded` counts what this trial had to encode anew (pictures, texts, scores); the cache had the rest.
    `retried` names how earlier attempts ended; `same_as` is the trial with exactly these parameters that was run.
    `aesthetic` holds one score per scene, 1 to 10; `coherence` the mean cosine between the pictures' CLIP embeddings.
    `threads` is how many a CPU computed with: the order of its sums, and so the last bits, depend on it.
    `scoring_version` is core.verdict's; None where nothing was scored, and in files older than it.
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
        return cls(**values | {"spec": TrialSpec.from_json(values["spec"]), "aesthetic": tuple(values["aesthetic"]),
                               "retried": tuple(values.get("retried", ()))})


def setting_names(section: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(section))
