"""Embeddings of prompts and latents of images, taken from the cache or encoded into it.

Shape legend: N examples, C channels, H x W latent cells, T tokens, D text width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from core.backbone.backbone import Backbone
from core.data.image import READING, ImageError, ask, open_image, without_ends
from core.files.cache import Cache, Key
from core.heartbeat import Heartbeat, no_heartbeat

GPU_PROMPTS = 8  # encoded at a time: hidden states of Kolors' text encoder take 60 MB a prompt in fp16


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """Embeddings of prompts: tokens (N, 256, D) and pooled (N, D), on the backbone's device."""

    tokens_NTD: Tensor
    pooled_ND: Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Training data: latents of the images and of their mirror images, and the captions' embeddings.

    `repeats` is how often each example is drawn in one pass; empty: once each.
    """

    latents_NCHW: Tensor
    mirrored_NCHW: Tensor
    captions: TextEmbeddings
    repeats: tuple[int, ...] = ()

    @property
    def rows_of_a_pass(self) -> Tensor:
        """The rows of one pass, unshuffled: the shortest pass that keeps the proportions of `repeats`."""
        rows = torch.arange(len(self.latents_NCHW))
        if not self.repeats:
            return rows
        return rows.repeat_interleave(torch.tensor(self.repeats) // math.gcd(*self.repeats))


def encode_prompts(prompts: Sequence[str], backbone: Backbone, cache: Cache) -> TextEmbeddings:
    """Embeddings in the order of the prompts."""
    encode_missing(prompts, backbone, cache)
    found = [cast(dict[str, Tensor], cache.find_tensors(_text_key(prompt, backbone))) for prompt in prompts]
    return TextEmbeddings(
        torch.stack([f["tokens"] for f in found]).to(backbone.device),
        torch.stack([f["pooled"] for f in found]).to(backbone.device),
    )


def encode_missing(
    prompts: Sequence[str], backbone: Backbone, cache: Cache, heartbeat: Heartbeat = no_heartbeat
) -> None:
    """Encode the prompts that are not in the cache; the text encoder is loaded only if there are any."""
    missing = [
        prompt for prompt in dict.fromkeys(prompts) if cache.find_tensors(_text_key(prompt, backbone)) is None
    ]
    # On a CPU one at a time: there, not even the last bit of an embedding may depend on the rest of a batch.
    at_once = GPU_PROMPTS if backbone.device.type == "cuda" else 1
    try:
        for first in range(0, len(missing), at_once):
            batch = missing[first : first + at_once]
            for prompt, tokens, pooled in zip(batch, *backbone.encode_text(batch), strict=True):
                cache.keep_tensors(_text_key(prompt, backbone), {"tokens": tokens, "pooled": pooled})
            heartbeat()
    finally:
        backbone.free_text_encoder()


def _text_key(prompt: str, backbone: Backbone) -> Key:
    return "text", backbone.weights["text_encoder"], str(backbone.dtype), prompt


def encode_images(
    table: pd.DataFrame, size_px: int, backbone: Backbone, cache: Cache, heartbeat: Heartbeat = no_heartbeat
) -> dict[int, str]:
    """Encode the images of the audit table that are not in the cache.

    Returns row -> reason for those that cannot be encoded.
    """
    unfit = {}
    for row, digest, path in zip(table.index, table["sha256"], table["path"], strict=True):
        try:
            _latents(digest, path, size_px, backbone, cache, heartbeat)
        except ImageError as error:  # not cached: the next release of a library may read it
            unfit[row] = str(error)
    return unfit


def encode_examples(
    table: pd.DataFrame, size_px: int, backbone: Backbone, cache: Cache, heartbeat: Heartbeat = no_heartbeat
) -> Examples:
    """Training data from the audit table, in its order. Raises ImageError if an image cannot be encoded."""
    found = [
        _latents(digest, path, size_px, backbone, cache, heartbeat)
        for digest, path in zip(table["sha256"], table["path"], strict=True)
    ]
    return Examples(
        torch.stack([f["plain"] for f in found]).to(backbone.device),
        torch.stack([f["mirrored"] for f in found]).to(backbone.device),
        encode_prompts(list(table["caption"]), backbone, cache),
        tuple(table["repeats"].tolist()) if "repeats" in table else (),
    )


def _latents(
    digest: str, path: str, size_px: int, backbone: Backbone, cache: Cache, heartbeat: Heartbeat
) -> dict[str, Tensor]:
    """Latents `plain` and `mirrored` of one image; mirrored latents are not those of the mirrored image."""

    def encode(image: Image.Image) -> dict[str, Tensor]:
        pixels = image_tensor(image, size_px)[None]
        return {
            "plain": backbone.encode_images(pixels)[0],
            "mirrored": backbone.encode_images(pixels.flip(-1))[0],
        }

    def encode_file() -> dict[str, Tensor]:
        heartbeat()
        return ask(encode, open_image(Path(path)))

    key = ("latents", READING, backbone.weights["vae_encoder"], str(backbone.dtype), size_px, digest)
    return cache.tensors(key, encode_file)


def image_tensor(image: Image.Image, size_px: int) -> Tensor:
    """Resize to cover, crop the centre -> (3, size, size) in [-1, 1].

    As DiffSynth's TextImageDataset with centre crop.
    """
    image = without_ends(image)
    scale = max(size_px / image.width, size_px / image.height)
    shape = [round(image.height * scale), round(image.width * scale)]
    cropped = tv.center_crop(
        tv.resize(image, shape, interpolation=InterpolationMode.BILINEAR), [size_px, size_px]
    )
    return torch.from_numpy(np.array(cropped, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
