"""The settings of one trial: plain values, no torch, named as in the study file, MLflow and the tables.

Each setting is declared here once. Its checks, error lines, JSON schema and line in studies/README.md are
derived from its field.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from typing_extensions import Doc

from core.files.files import FORBID_UNKNOWN

PRECISIONS = ("fp32", "fp16", "bf16")
SIZE_STEP_PX = 64  # DiffSynth 1.1.9 rounds other sizes up (pipelines/base.py)
PROMPT = "{prompt}"  # in a caption template: stands for the image's own caption
Value = str | int | float | bool | None  # of a setting
REMOTE = "modelscope:"  # what a source begins with that is a data set of ModelScope, not a folder
MAX_PX = 65_536
MAX_BYTES = 2**40


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a numeric field, both ends included; with `above`, `low` itself is excluded."""

    low: float
    high: float
    above: bool = False
    multiple_of: int = 1


@dataclass(frozen=True, slots=True)
class Form:
    """The regular expression that a text field must match as a whole; `form` describes it to the user."""

    pattern: str
    form: str = ""


NOT_BLANK = Form(r".*\S.*")
ATTENTION_LAYERS = Form(
    r"(?!.*\b(to_\w+)\b.*\b\1\b)to_(q|k|v|out)(,to_(q|k|v|out))*",
    "each once of to_q,to_k,to_v,to_out, without spaces",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the LoRA is trained; strength in training and use is `lora_alpha / lora_rank`."""

    lora_rank: Annotated[
        int, Bounds(1, 256), Doc("Size of the LoRA's matrices: more rank, more room, larger file")
    ] = 16
    lora_alpha: Annotated[
        float, Bounds(0, 1024, above=True), Doc("Strength: the LoRA is scaled by `lora_alpha / lora_rank`")
    ] = 4.0
    epochs: Annotated[
        int,
        Bounds(1, 1000),
        Doc("How many times `steps_per_epoch` are trained; each epoch leaves a LoRA that can be exported"),
    ] = 1
    learning_rate: Annotated[float, Bounds(0, 1, above=True), Doc("Step size of the optimiser")] = 1e-4
    steps_per_epoch: Annotated[int, Bounds(1, 100_000), Doc("Optimiser steps in one epoch")] = 100
    batch_size: Annotated[int, Bounds(1, 1024), Doc("Images in one optimiser step")] = 1
    lora_dropout: Annotated[float, Bounds(0, 0.9), Doc("Share of the LoRA's inputs dropped in training")] = (
        0.0
    )
    random_flip: Annotated[bool, Doc("Whether images are mirrored at random")] = False
    target_modules: Annotated[
        str,
        ATTENTION_LAYERS,
        Doc("Attention layers of the UNet that get a LoRA: endings of their names, commas between"),
    ] = "to_q,to_k,to_v,to_out"
    gradient_checkpointing: Annotated[
        Literal["auto", "on", "off"],
        Doc(
            "Compute activations twice to save memory: a step takes about half as long again; "
            "`auto`: only when they do not fit on the GPU"
        ),
    ] = "auto"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def scale(self) -> float:
        """Strength of the adapters (Hu et al. 2021, section 4.1)."""
        return self.lora_alpha / self.lora_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """How the story is drawn."""

    steps: Annotated[int, Bounds(1, 1000), Doc("Denoising steps for each image")] = 50
    cfg_scale: Annotated[
        float, Bounds(1, 30), Doc("Guidance: how strictly the prompt is followed; 1 is without")
    ] = 4.0
    size_px: Annotated[
        int,
        Bounds(64, 2048, multiple_of=SIZE_STEP_PX),
        Doc("Side of the square images in px, in training as in rendering"),
    ] = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which images are trained on: Data-Juicer's image filters, same names and meaning; inclusive."""

    subset: Annotated[
        str | None,
        NOT_BLANK,
        Doc(
            "Subset that is kept: the table's column `subset`, else the sub-folder that an image lies in; "
            "null: all"
        ),
    ] = None
    min_width: Annotated[int, Bounds(1, MAX_PX), Doc("Smallest width that is kept, px")] = 1
    max_width: Annotated[int | None, Bounds(1, MAX_PX), Doc("Largest width that is kept, px; null: any")] = (
        None
    )
    min_height: Annotated[int, Bounds(1, MAX_PX), Doc("Smallest height that is kept, px")] = 1
    max_height: Annotated[
        int | None, Bounds(1, MAX_PX), Doc("Largest height that is kept, px; null: any")
    ] = None
    min_ratio: Annotated[float, Bounds(0, 100, above=True), Doc("Smallest width / height that is kept")] = (
        0.333
    )
    max_ratio: Annotated[float, Bounds(0, 100, above=True), Doc("Largest width / height that is kept")] = 3.0
    min_size: Annotated[int, Bounds(1, MAX_BYTES), Doc("Smallest file size that is kept, bytes")] = 1
    max_size: Annotated[
        int | None, Bounds(1, MAX_BYTES), Doc("Largest file size that is kept, bytes; null: any")
    ] = None
    min_score: Annotated[float, Bounds(0, 1), Doc("Lowest aesthetic score / 10 that is kept")] = 0.0
    max_score: Annotated[float, Bounds(0, 1), Doc("Highest aesthetic score / 10 that is kept")] = 1.0
    deduplicate: Annotated[
        Literal["phash", "dhash", "whash", "ahash", "none"],
        Doc("Perceptual hash by which only the first of equal images is kept"),
    ] = "phash"
    max_images: Annotated[
        int | None,
        Bounds(1, 1_000_000),
        Doc("How many images are kept, those with the best scores; null: all"),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One image of the story: the prompts as the text encoder gets them, and the seed of its noise."""

    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """The story that every trial of a study renders: one image per scene."""

    title: str
    scenes: tuple[Scene, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the images are (layouts: core/data/folder.py), and the captions they are trained with."""

    source: Annotated[
        str,
        NOT_BLANK,
        Doc("Folder of images, relative to the study file or absolute, or `modelscope:owner/name`"),
    ]
    subset: Annotated[str | None, NOT_BLANK, Doc("Subset of a modelscope data set to load; null: all")] = None
    split: Annotated[str | None, NOT_BLANK, Doc("Split of a modelscope data set to load; null: train")] = None
    image_column: Annotated[
        str | None, NOT_BLANK, Doc("Column that holds or names the images; null: found by itself")
    ] = None
    text_column: Annotated[
        str | None, NOT_BLANK, Doc("Column that holds the captions; null: found by itself")
    ] = None
    caption: Annotated[
        str,
        NOT_BLANK,
        Doc(
            "Caption of every image: `{prompt}` stands for the one it came with, plain text replaces that; "
            "other braces are refused"
        ),
    ] = PROMPT
    min_images: Annotated[
        int, Bounds(1, 1_000_000), Doc("A trial whose filters keep fewer images ends at once as `no_images`")
    ] = 4

    @property
    def is_remote(self) -> bool:
        """Whether `source` names a data set of ModelScope rather than a folder."""
        return self.source.startswith(REMOTE)

    @property
    def shared_name(self) -> str:
        """`source` as it may be published: of a folder only its name, for paths are private."""
        return self.source if self.is_remote else Path(self.source).name


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """The content of spec.json: everything that a worker needs for one trial.

    `train` is None for the base model's own story.

    `precision` is used for training and rendering. `weights` is the folder of the base model's weights, None
    for the usual one.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN

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
        """The trial in messages."""
        return f"trial {self.number}" if self.train else "the base model's story"

    @property
    def batch_size(self) -> int:
        """Images in one step; 1 without a training."""
        return self.train.batch_size if self.train else 1

    def params(self) -> dict[str, Value]:
        """Every setting of train, render and data.filters under its study key, for the tables."""
        trained = asdict(self.train) if self.train else {}
        return trained | asdict(self.render) | asdict(self.filters)

    def all_params(self) -> dict[str, Value]:
        """`params` and what all trials of a study share.

        Of the data folder only the name: these are logged to MLflow, and paths are private.
        """
        shared: dict[str, Value] = {
            "backbone": self.backbone,
            "precision": self.precision,
            "seed": self.seed,
            "gate": self.gate,
            "data": Path(self.data.source).name,
            "caption": self.data.caption,
            "min_images": self.data.min_images,
        }
        return shared | self.params()


def setting_names(section: type) -> tuple[str, ...]:
    """The settings of Training, Rendering, Filters or Data, in the order of their declaration."""
    return tuple(f.name for f in fields(section))
