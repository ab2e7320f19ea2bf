"""Words and pictures as the UNet meets them, taken from the cache or encoded into it.

Shape legend: N examples, C channels, H x W latent cells, T tokens, D text width.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from core.backbone import Backbone
from core.cache import Cache
from core.picture import READING, PictureError, open_picture


@dataclass(frozen=True, slots=True)
class Words:
    """Embeddings of prompts: tokens (N, 256, D) and pooled (N, D), on the backbone's device."""
    tokens_NTD: Tensor
    pooled_ND: Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Training data: latents as they are and mirrored, both (N, 4, H, W), and the captions' embeddings."""
    latents_NCHW: Tensor
    mirrored_NCHW: Tensor
    words: Words


def encode_prompts(prompts: Sequence[str], backbone: Backbone, cache: Cache, *, positive: bool = True) -> Words:
    """One prompt at a time, so that an embedding never depends on what stood beside it in a batch."""
    weights = backbone.weights["text_encoder"]

    def encode(prompt: str) -> dict[str, Tensor]:
        tokens, pooled = backbone.encode_text(prompt, positive=positive)
        return {"tokens": tokens, "pooled": pooled}

    found = [cache.tensors(("text", weights, str(backbone.dtype), prompt), partial(encode, prompt))
             for prompt in prompts]
    return Words(torch.stack([f["tokens"] for f in found]).to(backbone.device),
                 torch.stack([f["pooled"] for f in found]).to(backbone.device))


def encode_examples(table: pd.DataFrame, size_px: int, backbone: Backbone, cache: Cache) -> Examples:
    """Both mirror images of every latent are kept, so that a flip equals encoding the flipped picture.

    Raises PictureError where a picture that is not in the cache has gone since the audit.
    """
    weights = backbone.weights["vae_encoder"]

    def encode(path: str) -> dict[str, Tensor]:
        try:
            pixels = picture_tensor(open_picture(Path(path)), size_px)[None]
        except PictureError as error:  # it was good when the audit looked
            raise PictureError(f"{path}: {error}") from None
        return {"plain": backbone.encode_pictures(pixels)[0], "mirrored": backbone.encode_pictures(pixels.flip(-1))[0]}

    found = [cache.tensors(("latents", READING, weights, str(backbone.dtype), size_px, digest), partial(encode, path))
             for digest, path in zip(table["sha256"], table["path"], strict=True)]
    return Examples(torch.stack([f["plain"] for f in found]).to(backbone.device),
                    torch.stack([f["mirrored"] for f in found]).to(backbone.device),
                    encode_prompts(list(table["caption"]), backbone, cache))


def picture_tensor(image: Image.Image, size_px: int) -> Tensor:
    """Resize to cover, crop the centre -> (3, size, size) in [-1, 1]; DiffSynth's TextImageDataset, centre crop."""
    scale = max(size_px / image.width, size_px / image.height)
    shape = [round(image.height * scale), round(image.width * scale)]
    cropped = tv.center_crop(tv.resize(image, shape, interpolation=InterpolationMode.BILINEAR), [size_px, size_px])
    return torch.from_numpy(np.array(cropped, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
