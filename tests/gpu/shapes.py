"""The measured base models: Kolors' true shape and a toy of the same classes, both with random weights.

Random weights cost what trained ones cost. They are drawn so that every layer keeps the size of its input and
no number leaves fp16: matrices with deviation 1 / sqrt(inputs), norms 1, biases 0. What is added to a
residual stream is a quarter of that: as in a trained network, a layer changes little, and rounding is not
blown up by chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from torch import nn
from transformers import CLIPImageProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from core.backbone.backbone import Backbone
from core.base_models import base_model
from core.kolors.models import KolorsUNet, KolorsVAEDecoder, KolorsVAEEncoder, UNetShape, VAEShape, chatglm
from core.tiny import models as tiny
from core.trial.spec import Rendering

TEXT_TOKENS = 256
ADDED, RESIDUAL = ("conv2", "to_out", "ff", "proj_out"), 0.25


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is built, and how long each setting is timed: the first of `epochs` warms up."""

    name: str
    rendering: Rendering
    steps_per_epoch: int
    epochs: int
    text_width: int
    unet: Callable[[], nn.Module]
    vae_encoder: Callable[[], nn.Module]
    vae_decoder: Callable[[], nn.Module]
    text_encoder: Callable[[], nn.Module]
    scorer: Callable[[], nn.Module]
    image_processor: Callable[[], CLIPImageProcessor]

    @property
    def latents_CHW(self) -> tuple[int, int, int]:
        return 4, self.rendering.size_px // 8, self.rendering.size_px // 8


KOLORS = Shape(
    name="kolors",
    rendering=Rendering(),
    steps_per_epoch=10,
    epochs=4,
    text_width=UNetShape().text_width,
    unet=lambda: KolorsUNet(UNetShape()),
    vae_encoder=lambda: KolorsVAEEncoder(VAEShape()),
    vae_decoder=lambda: KolorsVAEDecoder(VAEShape()),
    text_encoder=lambda: chatglm(torch.get_default_dtype()),
    scorer=lambda: AestheticsPredictorV2Linear(
        CLIPVisionConfig(  # CLIP ViT-L/14
            hidden_size=1024,
            intermediate_size=4096,
            projection_dim=768,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        )
    ),
    image_processor=CLIPImageProcessor,
)
TOY = Shape(
    name="toy",
    rendering=Rendering(size_px=128, steps=2),
    steps_per_epoch=1,
    epochs=2,
    text_width=tiny.TEXT_WIDTH,
    unet=tiny.tiny_unet,
    vae_encoder=tiny.tiny_vae_encoder,
    vae_decoder=tiny.tiny_vae_decoder,
    text_encoder=tiny.tiny_text_encoder,
    scorer=tiny.tiny_scorer,
    image_processor=tiny.tiny_image_processor,
)


def build_backbone(shape: Shape, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Everything that a trial needs, made when it is first asked for; the text encoder may lie beside the
    UNet.
    """
    models = {
        "unet": shape.unet,
        "vae_encoder": shape.vae_encoder,
        "vae_decoder": shape.vae_decoder,
        "text_encoder": shape.text_encoder,
    }
    return Backbone(
        model=base_model("kolors"),
        device=device,
        dtype=dtype,
        readers={name: partial(random_model, make, device, dtype) for name, make in models.items()}
        | {"scorer": partial(random_model, shape.scorer, device, torch.float32)},
        image_processor=shape.image_processor(),
        weights=dict.fromkeys((*models, "scorer"), "random"),
    )


def random_model(
    make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Any:
    """A frozen model made on the device in its dtype, so that it never takes host memory."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = make()
    finally:
        torch.set_default_dtype(usual)
    generator = torch.Generator(device).manual_seed(seed)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                size = RESIDUAL if path.rpartition(".")[2] in ADDED else 1.0
                parameter.data.normal_(0, size * parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.data.fill_(1.0 if name == "weight" else 0.0)
    return model.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
