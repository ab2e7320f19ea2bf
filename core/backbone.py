"""The model seam: one object with UNet, VAE, text encoder, scheduler and scorer; nobody after it asks which it has.

Shape legend: B pictures, C channels, H x W latent cells (an eighth of the pixels), T tokens, D text width.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffsynth.prompters import KolorsPrompter
from diffsynth.schedulers import EnhancedDDIMScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from core.files import sha256

TRAIN_TIMESTEPS = 1100
BETA_END = 0.014  # Kolors' noise schedule (examples/train/kolors/train_kolors_lora.py, DiffSynth 1.1.9)
DTYPES = {"fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen base model on one device, ready to encode, train on, render and score."""
    name: str
    device: torch.device
    dtype: torch.dtype
    unet: nn.Module = field(repr=False)
    vae_encoder: nn.Module = field(repr=False)
    vae_decoder: nn.Module = field(repr=False)
    prompter: KolorsPrompter = field(repr=False)
    scorer: Any = field(repr=False)
    scorer_name: str
    image_processor: CLIPImageProcessor
    weights: dict[str, str]                     # part -> sha256 of its file; keys of the cache
    known_tokens: frozenset[int] | None = None  # None: the text encoder knows all

    def new_scheduler(self) -> EnhancedDDIMScheduler:
        """A scheduler of one's own: rendering shortens `timesteps` in place (schedulers/ddim.py, DiffSynth 1.1.9)."""
        return EnhancedDDIMScheduler(beta_end=BETA_END, num_train_timesteps=TRAIN_TIMESTEPS)

    @torch.no_grad()
    def encode_text(self, prompt: str, *, positive: bool = True) -> tuple[Tensor, Tensor]:
        """-> prompt embedding (256, D) and pooled embedding (D,)."""
        pooled, tokens = self.prompter.encode_prompt(prompt, positive=positive, device=str(self.device))
        return tokens[0], pooled[0]

    @torch.no_grad()
    def encode_pictures(self, pictures_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] -> latents (B, 4, H/8, W/8)."""
        pixels = pictures_B3HW.to(self.device, self.dtype, memory_format=torch.channels_last)
        return self.vae_encoder(pixels)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> list[Image.Image]:
        """Latents -> pictures, in 8 bits exactly as DiffSynth's `vae_output_to_image`."""
        pixels = self.vae_decoder(latents_BCHW.contiguous(memory_format=torch.channels_last))
        arrays = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array) for array in arrays]

    def predict_noise(self, noisy_BCHW: Tensor, timesteps: Tensor, tokens_BTD: Tensor, pooled_BD: Tensor) -> Tensor:
        """One forward of the UNet; `timesteps` (B,) or (1,)."""
        height, width = noisy_BCHW.shape[2] * 8, noisy_BCHW.shape[3] * 8
        size = torch.tensor([height, width, 0, 0, height, width], device=self.device).repeat(len(noisy_BCHW))
        return self.unet(noisy_BCHW.contiguous(memory_format=torch.channels_last), timesteps, tokens_BTD, size, pooled_BD)

    def unknown_words(self, prompt: str) -> list[str]:
        """Pieces of the prompt that the text encoder was never taught (they count as silence)."""
        if self.known_tokens is None:
            return []
        tokenizer = self.prompter.tokenizer
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [piece for i in ids if i not in self.known_tokens and (piece := tokenizer.decode([i]).strip())]


def load_backbone(name: str, device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Load a base model. Raises ValueError on a name or precision that does not exist."""
    if name != "tiny":
        raise ValueError(f"backbone {name!r} is not built yet (allowed: tiny)")
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is not built yet (allowed: {', '.join(DTYPES)})")
    return _load_tiny(torch.device(device), DTYPES[precision])


def _load_tiny(device: torch.device, dtype: torch.dtype) -> Backbone:
    from core.tiny import models

    text_encoder, known = models.load_text_encoder()
    prompter = KolorsPrompter()
    prompter.fetch_models(_frozen(text_encoder, device, dtype))

    def part(model: nn.Module, weights: str, kind: torch.dtype = dtype) -> nn.Module:
        model.load_state_dict(models.load_weights(weights))
        return _frozen(model, device, kind)

    return Backbone(
        name="tiny", device=device, dtype=dtype, prompter=prompter, known_tokens=known,
        unet=part(models.TinyUNet(), "unet"),
        vae_encoder=part(models.TinyVAEEncoder(), "vae_encoder"),
        vae_decoder=part(models.TinyVAEDecoder(), "vae_decoder"),
        # The scorer stays in fp32 whatever the precision: half a point decides about the gate.
        scorer=part(models.tiny_scorer(), "scorer", torch.float32),
        scorer_name="tiny-aesthetic-v1",
        image_processor=models.tiny_image_processor(),
        weights={path.stem: sha256(path) for path in sorted(models.WEIGHTS.glob("*.safetensors"))},
    )


def _frozen(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return model.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def unknown_story_words(backbone: Backbone, prompts: Sequence[str]) -> list[str]:
    """Every unknown piece once, in order of appearance."""
    return list(dict.fromkeys(word for prompt in prompts for word in backbone.unknown_words(prompt)))
