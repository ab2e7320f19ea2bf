"""A loaded base model: UNet, VAE, text encoder, scheduler and scorer behind one interface for all models.

Shape legend: B images or prompts, C channels, H x W latent cells (an eighth of the pixels), T tokens, D text
width.
"""

import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffsynth.prompters import KolorsPrompter
from diffsynth.schedulers import EnhancedDDIMScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from core.base_models import DEFAULT, BaseModel, base_model
from core.errors import UserError
from core.files.weight_files import PARTS, Part
from core.trial.spec import PRECISIONS

if TYPE_CHECKING:
    from aesthetics_predictor import AestheticsPredictorV2Linear

TRAIN_TIMESTEPS = 1100
BETA_END = 0.014  # Kolors' noise schedule (examples/train/kolors/train_kolors_lora.py, DiffSynth 1.1.9)
DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.float16, torch.bfloat16), strict=True))
DECODED_CELLS = 128 * 128  # latent cells at a time: one image of 1024 px takes 1.6 GB in fp16 (counted)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen base model on one device, ready to encode, train on, render and score.

    A part is read from the disk when it is first used. With `text_encoder_alone` the text encoder is too
    large to share the device with the UNet: the UNet moves to the host while it is loaded, until
    `free_text_encoder` is called.
    """

    model: BaseModel
    device: torch.device
    dtype: torch.dtype
    readers: Mapping[str, Callable[[], nn.Module]] = field(repr=False)
    image_processor: CLIPImageProcessor
    weights: dict[str, str]  # part -> digest of its weight files; part of the cache's keys
    known_tokens: frozenset[int] | None = None  # that the text encoder was trained on; None: all
    text_encoder_alone: bool = False
    _prompter: KolorsPrompter = field(default_factory=KolorsPrompter, repr=False)
    _parts: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def unet(self) -> nn.Module:
        """The denoising network, with the adapters that are injected at the moment."""
        return self._part("unet")

    @property
    def vae_encoder(self) -> nn.Module:
        """Images -> latents; `encode_images` calls it."""
        return self._part("vae_encoder")

    @property
    def vae_decoder(self) -> nn.Module:
        """Latents -> images; `decode` calls it."""
        return self._part("vae_decoder")

    @property
    def scorer(self) -> "AestheticsPredictorV2Linear":
        """The aesthetic predictor, always in fp32; core/story/score.py calls it."""
        return self._part("scorer")

    @property
    def processor(self) -> str:
        """The model of the GPU or CPU, on which the last bits of training, rendering and scores depend."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        with suppress(OSError):
            cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
            if found := re.search(r"^model name\s*: *(.+)$", cpu, re.MULTILINE):
                return found[1]
        return platform.processor()

    @property
    def prompter(self) -> KolorsPrompter:
        """Tokenizer and text encoder; loads the encoder, which may move the UNet off the device."""
        if self.text_encoder_alone and "text_encoder" not in self._parts:
            self._move_unet(torch.device("cpu"))
        self._prompter.fetch_models(self._part("text_encoder"))
        return self._prompter

    def free_text_encoder(self) -> None:
        """Unload the text encoder and bring the UNet back, where both do not fit on the device."""
        if not self.text_encoder_alone:
            return
        self._prompter.fetch_models(None)
        if self._parts.pop("text_encoder", None):
            self._empty_gpu_cache()
        if "unet" in self._parts and next(self._parts["unet"].parameters()).device.type != self.device.type:
            self._move_unet(self.device)

    def _part(self, name: str) -> nn.Module:
        if name not in self._parts:
            self._parts[name] = self.readers[name]()
        return self._parts[name]

    def _move_unet(self, device: torch.device) -> None:
        """Move the UNet, if it is loaded, with its adapters."""
        if "unet" in self._parts:
            self._parts["unet"].to(device)
        self._empty_gpu_cache()

    def _empty_gpu_cache(self) -> None:
        """Return freed memory to the GPU, so that the next part is not held up by fragments."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def new_scheduler(self) -> EnhancedDDIMScheduler:
        """A fresh scheduler for each use.

        Rendering shortens `timesteps` in place (schedulers/ddim.py, DiffSynth 1.1.9).
        """
        return EnhancedDDIMScheduler(beta_end=BETA_END, num_train_timesteps=TRAIN_TIMESTEPS)

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor to the device; pinned memory, so that the host does not wait for a GPU."""
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> prompt embeddings (B, 256, D) and pooled embeddings (B, D)."""
        pooled_BD, tokens_BTD = self.prompter.encode_prompt(list(prompts), device=str(self.device))
        return tokens_BTD, pooled_BD

    @torch.no_grad()
    def encode_images(self, images_B3HW: Tensor) -> Tensor:
        """Images in [-1, 1] -> latents (B, 4, H/8, W/8)."""
        pixels = images_B3HW.to(self.device, self.dtype, memory_format=torch.channels_last)
        latents: Tensor = self.vae_encoder(pixels)
        return latents

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> list[Image.Image]:
        """Latents -> images, in 8 bits exactly as DiffSynth's `vae_output_to_image`."""
        at_once = max(1, DECODED_CELLS // (latents_BCHW.shape[2] * latents_BCHW.shape[3]))
        images: list[Image.Image] = []
        for part in latents_BCHW.split(at_once):
            pixels = self.vae_decoder(part.contiguous(memory_format=torch.channels_last))
            arrays = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
            images += [Image.fromarray(array) for array in arrays]
        return images

    def predict_noise(
        self, noisy_BCHW: Tensor, timesteps: Tensor, tokens_BTD: Tensor, pooled_BD: Tensor
    ) -> Tensor:
        """One forward of the UNet; `timesteps` (B,) or (1,)."""
        # Height, width, no crop, height, width; filled on the device: a CUDA graph allows no host copy.
        size = timesteps.new_zeros((len(noisy_BCHW), 6), dtype=torch.long)
        size[:, 0::4], size[:, 1::4] = noisy_BCHW.shape[2] * 8, noisy_BCHW.shape[3] * 8
        noisy = noisy_BCHW.contiguous(memory_format=torch.channels_last)
        noise: Tensor = self.unet(noisy, timesteps, tokens_BTD, size.flatten(), pooled_BD)
        return noise

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Pieces of the prompts that the text encoder was not trained on, each once, in order of appearance.

        It reads them as zero vectors.
        """
        known, tokenizer = self.known_tokens, self._prompter.tokenizer
        if known is None:
            return []
        ids = (i for prompt in prompts for i in tokenizer(prompt, add_special_tokens=False)["input_ids"])
        pieces = (tokenizer.decode([i]).strip() for i in ids if i not in known)
        return list(dict.fromkeys(piece for piece in pieces if piece))


def load_backbone(
    name: str,
    device: str = "auto",
    precision: str | None = None,
    weights_folder: str | None = None,
    parts: Collection[Part] = PARTS,
) -> Backbone:
    """Load a base model; `parts` says which of its weight files must be there.

    `device` auto is a GPU for a model that needs one, if there is one; `precision` None is the model's
    default. Raises UserError, before anything is loaded, on a name, device or precision that does not exist
    or cannot train here, and on missing weights.
    """
    place = place_of(name, device, precision)
    model = base_model(name)
    if place.index is not None and place.type == "cuda":
        torch.cuda.set_device(place)  # streams and CUDA graphs belong to the current one
    set_number_modes()
    loader = import_module(model.loader)
    backbone: Backbone = loader.read_backbone(
        model, place, DTYPES[precision or model.precision], model.weights_folder(weights_folder), parts
    )
    return backbone


def set_number_modes() -> None:
    """Set the modes of this process that numbers depend on."""
    torch.set_flush_denormal(True)  # numbers so small that a CPU computes with them slowly become zero
    # cuDNN's default, TF32, keeps only ten bits of the mantissa, which could move a score across the gate.
    torch.backends.cudnn.allow_tf32 = False


def place_of(name: str, device: str, precision: str | None) -> torch.device:
    """The device that a base model would use; arguments as in `load_backbone`.

    Raises UserError on values that are not known or cannot work here.
    """
    model = base_model(name)
    precision = precision or model.precision
    if precision not in DTYPES:
        raise UserError(f"precision {precision!r} is not known (allowed: {', '.join(DTYPES)})")
    place = _device(device, wants_gpu=model.needs_gpu)
    if precision == "fp16" and place.type == "cpu" and model.needs_gpu and device == "auto":
        raise UserError(
            f"backbone is {name}, which needs a GPU, and torch sees none here "
            f"(backbone: {DEFAULT} runs on the CPU)"
        )
    if precision == "fp16" and place.type == "cpu":
        raise UserError(
            "precision is fp16, but loss scaling needs a GPU, and this is the CPU (allowed here: fp32, bf16)"
        )
    return place


def _device(written: str, *, wants_gpu: bool) -> torch.device:
    gpu = torch.cuda.is_available()
    if written == "auto":
        return torch.device("cuda" if gpu and wants_gpu else "cpu")
    try:
        device = torch.device(written)
    except RuntimeError:
        raise UserError(
            f"device is {written!r}, but there is no such device (allowed: auto, cpu, cuda, cuda:1)"
        ) from None
    if device.type == "cuda" and not gpu:
        raise UserError(f"device is {written!r}, but torch sees no GPU here (allowed: cpu)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device is {written!r}, but torch sees {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return device
