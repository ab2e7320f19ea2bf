"""Floating-point operations of each piece of work, counted on the meta device: no memory, no weights.

All counts are in TFLOP (1e12, a multiplication and an addition are two); they are what is executed, so that a
step with gradient checkpointing counts its second forward.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.lora import adapters
from core.trial.spec import Training
from tests.gpu.shapes import TEXT_TOKENS, Shape


@cache
def unet_forward(shape: Shape) -> float:
    """One image, one forward, no adapters; 6.96 for Kolors at 1024 px."""
    unet = _meta(shape.unet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**_unet_inputs(shape))
    return counter.get_total_flops() / 1e12


@cache
def training_step(shape: Shape, rank: int, checkpointing: bool) -> float:
    """Forward and backward of one image with a LoRA."""
    unet = _meta(shape.unet).requires_grad_(False)
    adapters.inject(unet, Training(lora_rank=rank, lora_alpha=rank), seed=0)
    unet.train()
    with FlopCounterMode(display=False) as counter:
        unet(**_unet_inputs(shape), use_gradient_checkpointing=checkpointing).sum().backward()
    return counter.get_total_flops() / 1e12


@cache
def decoding(shape: Shape) -> float:
    return _forward(_meta(shape.vae_decoder), torch.empty(1, *shape.latents_CHW, device="meta"))


@cache
def encoding(shape: Shape) -> float:
    """One image and one caption, as DiffSynth's trainer encodes them at every step."""
    size_px = shape.rendering.size_px
    image = _forward(_meta(shape.vae_encoder), torch.empty(1, 3, size_px, size_px, device="meta"))
    return image + text(shape)


@cache
def text(shape: Shape) -> float:
    """A transformer multiplies every weight of its layers once for each token; its attention over 256 tokens
    is little.
    """
    layers = _meta(shape.text_encoder).encoder.layers
    return 2 * TEXT_TOKENS * sum(parameter.numel() for parameter in layers.parameters()) / 1e12


def images(shape: Shape, count: int) -> float:
    """Denoising with guidance (two forwards a step) and decoding; the adapters' share, about 1 %, is left
    out.
    """
    return count * (2 * shape.rendering.steps * unet_forward(shape) + decoding(shape))


def _forward(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 1e12


def _meta(make):
    with torch.device("meta"):
        return make()


def _unet_inputs(shape: Shape) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return {
            "sample": torch.empty(1, *shape.latents_CHW),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, TEXT_TOKENS, shape.text_width),
            "add_time_id": torch.empty(6),
            "add_text_embeds": torch.empty(1, shape.text_width),
        }
