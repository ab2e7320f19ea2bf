"""Make the toy model ready from its shipped weights."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.backbone.backbone import Backbone
from core.base_models import BaseModel
from core.files.weight_files import PARTS, Part
from core.tiny import models


def read_backbone(
    model: BaseModel, device: torch.device, dtype: torch.dtype, folder: Path, parts: Collection[Part]
) -> Backbone:
    """`parts` makes no difference: all files are here."""

    def read(make: Callable[[], nn.Module], weights: str, kind: torch.dtype = dtype) -> Any:
        network = make()
        network.load_state_dict(models.load_weights(weights))
        return _frozen(network, device, kind)

    return Backbone(
        name=model.name,
        architecture=model.architecture,
        device=device,
        dtype=dtype,
        known_tokens=models.known_tokens(),
        readers={
            "unet": partial(read, models.TinyUNet, "unet"),
            "vae_encoder": partial(read, models.TinyVAEEncoder, "vae_encoder"),
            "vae_decoder": partial(read, models.TinyVAEDecoder, "vae_decoder"),
            "text_encoder": lambda: _frozen(models.load_text_encoder(), device, dtype),
            # The scorer stays in fp32 whatever the precision: half a point decides about the gate.
            "scorer": partial(read, models.tiny_scorer, "scorer", torch.float32),
        },
        scorer_name=model.scorer,
        image_processor=models.tiny_image_processor(),
        weights=model.files.fingerprints(folder, PARTS),
    )


def _frozen(network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return network.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
