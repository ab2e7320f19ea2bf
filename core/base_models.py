"""The base models that a LoRA can be trained for: one row each, the only place that knows them by name.

Imports no torch. A new model is a folder like core/kolors or core/tiny (`files`: its weight files; `load`:
`read_backbone`) and a row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files.weight_files import WeightFiles
from core.kolors import files as kolors_files
from core.kolors import memory as kolors_memory
from core.tiny import files as tiny_files


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedWork:
    """Sizes, memory and work of a model, from which time and memory on a GPU are estimated.

    `kept_bytes` and `recomputed_bytes`: core/kolors/memory.py. Work in TFLOP at 1024 px and batch 1: a LoRA
    training step, the same with gradient checkpointing, a forward pass of the UNet, and a training image with
    its caption through the encoders.
    """

    unet_parameters: float
    vae_parameters: float
    text_encoder_parameters: float
    scorer_bytes: float
    kept_bytes: Mapping[int, int]
    recomputed_bytes: Mapping[int, int]
    step_tflop: float
    recomputed_step_tflop: float
    forward_tflop: float
    encoded_tflop: float
    score_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredOnCpu:
    """Seconds on two cores of a server CPU, at `size_px`."""

    size_px: int
    row_s: float
    forward_s: float
    score_s: float
    image_s: float  # a training image read, scored and encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """One base model. Estimates start from `work` (on a GPU) or `on_cpu` until this machine was measured."""

    name: str  # the value of the study's key `backbone`
    title: str  # what people call it
    title_zh: str
    is_toy: bool
    precision: str  # unless a study says otherwise
    needs_gpu: bool  # `auto` is the CPU for one that needs none
    architecture: str  # what LoRA files say they are made for
    scorer: str  # name of the model that scores its images
    files: WeightFiles
    # the module that fetches them, as a program or by `fetch_with_progress`; None: they are shipped
    download: str | None
    loader: str  # the module whose `read_backbone` makes it ready; imports torch
    text_width: int  # of a text embedding
    lora_parameters: Mapping[str, int]  # per rank, by target module
    lora_layers: int  # per target module
    hub_id: str | None  # on ModelScope, for the model card
    tag: str  # on ModelScope
    licence: str  # of the LoRAs, for the model card
    usage: str  # the model card's template on how to use a LoRA (reports/templates)
    work: CountedWork | None = None
    on_cpu: MeasuredOnCpu | None = None
    host_bytes: float = 0.0  # memory of a worker, where there is no `work` to count it by

    def weights_folder(self, written: str | None) -> Path:
        """Where its weight files are looked for; `written` is the value of the study's key `weights`."""
        return self.files.models_folder(written or "")


# Parameters of a LoRA: (in + out) over the UNet's attention layers. Kolors has 10 transformer blocks of width
# 640 and 60 of 1280 with text of width 2048, the toy 11 of 64 with text of 64.
KOLORS = BaseModel(
    name="kolors",
    title="Kolors",
    title_zh="可图 Kolors",
    is_toy=False,
    precision="fp16",
    needs_gpu=True,
    architecture="sdxl_kolors",
    scorer=kolors_files.SCORER_FOLDER,
    files=kolors_files,
    download=kolors_files.DOWNLOAD,
    loader="core.kolors.load",
    text_width=4096,
    lora_parameters={"to_q": 332_800, "to_k": 392_960, "to_v": 392_960, "to_out": 332_800},
    lora_layers=140,
    work=CountedWork(
        unet_parameters=2.58e9,
        vae_parameters=0.084e9,
        text_encoder_parameters=6.24e9,
        scorer_bytes=1.22e9,  # CLIP ViT-L/14's vision half, always in fp32
        kept_bytes=kolors_memory.KEPT_BYTES,
        recomputed_bytes=kolors_memory.RECOMPUTED_BYTES,
        # Counted on DiffSynth's own classes
        step_tflop=14.5,
        recomputed_step_tflop=20.9,
        forward_tflop=6.96,
        encoded_tflop=2 * 4.9 + 3.2,  # through the VAE as it is and mirrored; through ChatGLM3-6B
        # CLIP ViT-L/14 with an H100: resizing on the CPU takes longer than the model
        score_s=0.04,
    ),
    hub_id=kolors_files.KOLORS,
    tag="Kolors",
    licence="apache-2.0",
    usage="use_kolors.md.jinja",
)

# Measured on an AMD EPYC of 2.6 GHz in the demo; 5000 images were read, scored and encoded in 162 s, and a
# worker took 1.1 GB of memory: the driver comes on top.
TINY = BaseModel(
    name="tiny",
    title="the toy model",
    title_zh="玩具模型",
    is_toy=True,
    precision="fp32",
    needs_gpu=False,
    architecture="kolors-tiny",
    scorer="tiny-aesthetic-v1",
    files=tiny_files,
    download=None,
    loader="core.tiny.load",
    text_width=64,
    lora_parameters=dict.fromkeys(("to_q", "to_k", "to_v", "to_out"), 2_816),
    lora_layers=22,
    on_cpu=MeasuredOnCpu(size_px=128, row_s=0.012, forward_s=0.0043, score_s=0.002, image_s=0.032),
    host_bytes=1.5e9,
    hub_id=None,
    tag="toy-model",
    licence="apache-2.0",
    usage="use_toy.md.jinja",
)

BASE_MODELS = {model.name: model for model in (TINY, KOLORS)}
DEFAULT = TINY.name  # of a study that names none


def base_model(name: str) -> BaseModel:
    """The row of the base model of this name. Raises UserError where there is none."""
    if name not in BASE_MODELS:
        raise UserError(f"backbone {name!r} is not known (allowed: {', '.join(BASE_MODELS)})")
    return BASE_MODELS[name]
