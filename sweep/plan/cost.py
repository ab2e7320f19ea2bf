"""What a trial needs: disk by exact arithmetic, memory by counted sizes and estimates. No torch."""

from dataclasses import dataclass

from core.backbone.tokens import MAX_TOKENS
from core.base_models import CountedWork, base_model
from core.trial.spec import TrialSpec

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
HEADER_BYTES = 445  # per layer in the header of a LoRA file: three names, alpha
PNG_BYTES_PER_PIXEL = 1.5  # assumed; the toy's images take 1.1

ADAM_BYTES = 16  # per LoRA parameter: itself in fp32, its gradient, two moments
CUDA_BYTES = 1.0e9  # assumed: context, kernels, memory that the allocator keeps
HOST_OF_LARGEST = 1.3  # loading takes at most this many times the largest file


def lora_parameters(spec: TrialSpec) -> int:
    """How many parameters the trial's LoRA has."""
    assert spec.train
    per_rank = base_model(spec.backbone).lora_parameters
    return spec.train.lora_rank * sum(per_rank[target] for target in spec.train.target_modules.split(","))


def trial_disk_bytes(spec: TrialSpec) -> int:
    """The LoRA of every epoch, the last one twice more (lora.safetensors, MLflow), and the story."""
    assert spec.train
    layers = base_model(spec.backbone).lora_layers * len(spec.train.target_modules.split(","))
    return (spec.train.epochs + 2) * (4 * lora_parameters(spec) + layers * HEADER_BYTES) + story_disk_bytes(
        spec
    )


def checkpoint_disk_bytes(spec: TrialSpec) -> int:
    """The LoRA and its two moments in fp32, twice while one file replaces another; removed afterwards."""
    return 2 * 3 * 4 * lora_parameters(spec)


def story_disk_bytes(spec: TrialSpec) -> int:
    """The story's images and the sheet of them all, both in the trial's folder and in MLflow."""
    return round(4 * len(spec.story.scenes) * spec.render.size_px**2 * PNG_BYTES_PER_PIXEL)


def image_cache_bytes(spec: TrialSpec) -> int:
    """One training image's latents, plain and mirrored."""
    return 2 * 4 * (spec.render.size_px // 8) ** 2 * BYTES[spec.precision]


def text_cache_bytes(spec: TrialSpec) -> int:
    """One prompt's embedding and its pooled one."""
    return (MAX_TOKENS + 1) * base_model(spec.backbone).text_width * BYTES[spec.precision]


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Estimated peaks in bytes.

    `host` is of the host; of the device: `training` without, `checkpointed` with gradient checkpointing,
    `encoding` while text is encoded.
    """

    host: float
    training: float
    checkpointed: float
    encoding: float

    @property
    def least(self) -> float:
        """What the device must have at the least: with gradient checkpointing."""
        return max(self.checkpointed, self.encoding)


def peak_memory(spec: TrialSpec, work: CountedWork, device: str) -> PeakMemory:
    """Weights by dtype, activations by latent cells of a batch; on a CPU all of it is in host memory."""
    assert spec.train
    size = BYTES[spec.precision]
    lora = lora_parameters(spec) * ADAM_BYTES
    resident = (work.unet_parameters + work.vae_parameters) * size + work.scorer_bytes + CUDA_BYTES
    cells = spec.train.batch_size * (spec.render.size_px // 8) ** 2
    training = resident + lora + cells * work.kept_bytes[size]
    encoding = work.text_encoder_parameters * size + work.scorer_bytes + CUDA_BYTES
    loading = HOST_OF_LARGEST * max(file.size_bytes or 0 for file in base_model(spec.backbone).files.FILES)
    return PeakMemory(
        host=max(loading, training, encoding) if device == "cpu" else loading,
        training=training,
        checkpointed=resident + lora + cells * work.recomputed_bytes[size],
        encoding=encoding,
    )
