"""Load the toy model from its shipped weights."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from core.backbone.backbone import Backbone
from core.base_models import BaseModel
from core.files.weight_files import PARTS, Part
from core.tiny import models

Model = TypeVar("Model", bound=nn.Module)


def read_backbone(
    model: BaseModel, device: torch.device, dtype: torch.dtype, folder: Path, parts: Collection[Part]
) -> Backbone:
    """The backbone for `load_backbone`; `parts` makes no difference, for all files are shipped."""

    def read(make: Callable[[], Model], weights: str, kind: torch.dtype = dtype) -> Model:
        network = make()
        network.load_state_dict(models.load_weights(weights))
        return _frozen(network, device, kind)

    return Backbone(
        model=model,
        device=device,
        dtype=dtype,
        known_tokens=models.known_tokens(),
        readers={
            "unet": partial(read, models.tiny_unet, "unet"),
            "vae_encoder": partial(read, models.tiny_vae_encoder, "vae_encoder"),
            "vae_decoder": partial(read, models.tiny_vae_decoder, "vae_decoder"),
            "text_encoder": lambda: _frozen(models.load_text_encoder(), device, dtype),
            # In fp32 whatever the precision: rounding could move a score across the gate.
            "scorer": partial(read, models.tiny_scorer, "scorer", torch.float32),
        },
        image_processor=models.tiny_image_processor(),
        weights=model.files.fingerprints(folder, PARTS),
    )


def _frozen(network: Model, device: torch.device, dtype: torch.dtype) -> Model:
    return network.to(device, dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)
