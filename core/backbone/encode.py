"""Words and pictures as the UNet meets them, taken from the cache or encoded into it.

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
from core.data.picture import READING, PictureError, ask, open_picture, without_ends
from core.files.cache import Cache
from core.heartbeat import Beat, no_beat

GPU_PROMPTS = 8  # Kolors' text encoder at a time: its hidden states take 60 MB a prompt in fp16


@dataclass(frozen=True, slots=True)
class Words:
    """Embeddings of prompts: tokens (N, 256, D) and pooled (N, D), on the backbone's device."""

    tokens_NTD: Tensor
    pooled_ND: Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Training data: latents as they are and mirrored, both (N, 4, H, W), and the captions' embeddings.

    `repeats` is how often each is drawn in one pass; none: once each.
    """

    latents_NCHW: Tensor
    mirrored_NCHW: Tensor
    words: Words
    repeats: tuple[int, ...] = ()

    @property
    def deck(self) -> Tensor:
        """The rows of one pass in order, the shortest with these repeats."""
        rows = torch.arange(len(self.latents_NCHW))
        return (
            rows.repeat_interleave(torch.tensor(self.repeats) // math.gcd(*self.repeats))
            if self.repeats
            else rows
        )


def encode_prompts(prompts: Sequence[str], backbone: Backbone, cache: Cache) -> Words:
    """Embeddings in the order of the prompts."""
    encode_missing(prompts, backbone, cache)
    found = [cast(dict[str, Tensor], cache.find_tensors(_text_key(prompt, backbone))) for prompt in prompts]
    return Words(
        torch.stack([f["tokens"] for f in found]).to(backbone.device),
        torch.stack([f["pooled"] for f in found]).to(backbone.device),
    )


def encode_missing(prompts: Sequence[str], backbone: Backbone, cache: Cache, beat: Beat = no_beat) -> None:
    """Encode into the cache what nobody encoded before; only for that is the text encoder needed."""
    missing = [
        prompt for prompt in dict.fromkeys(prompts) if cache.find_tensors(_text_key(prompt, backbone)) is None
    ]
    # On a CPU one at a time: there, not even the last bit of an embedding may depend on what stood beside it.
    at_once = GPU_PROMPTS if backbone.device.type == "cuda" else 1
    try:
        for first in range(0, len(missing), at_once):
            batch = missing[first : first + at_once]
            for prompt, tokens, pooled in zip(batch, *backbone.encode_text(batch), strict=True):
                cache.keep_tensors(_text_key(prompt, backbone), {"tokens": tokens, "pooled": pooled})
            beat()
    finally:
        backbone.free_text_encoder()


def _text_key(prompt: str, backbone: Backbone) -> tuple:
    return "text", backbone.weights["text_encoder"], str(backbone.dtype), prompt


def encode_pictures(
    table: pd.DataFrame, size_px: int, backbone: Backbone, cache: Cache, beat: Beat = no_beat
) -> dict[int, str]:
    """Encode into the cache the rows that nobody encoded before; row -> reason of those that cannot be
    encoded.
    """
    unfit = {}
    for row, digest, path in zip(table.index, table["sha256"], table["path"], strict=True):
        try:
            _latents(digest, path, size_px, backbone, cache, beat)
        except PictureError as error:  # may be another library's with its next release, so it is not kept
            unfit[row] = str(error)
    return unfit


def encode_examples(
    table: pd.DataFrame, size_px: int, backbone: Backbone, cache: Cache, beat: Beat = no_beat
) -> Examples:
    """The table's rows in their order. Raises PictureError where one that is not in the cache cannot be
    encoded.
    """
    found = [
        _latents(digest, path, size_px, backbone, cache, beat)
        for digest, path in zip(table["sha256"], table["path"], strict=True)
    ]
    return Examples(
        torch.stack([f["plain"] for f in found]).to(backbone.device),
        torch.stack([f["mirrored"] for f in found]).to(backbone.device),
        encode_prompts(list(table["caption"]), backbone, cache),
        tuple(table["repeats"].tolist()) if "repeats" in table else (),
    )


def _latents(
    digest: str, path: str, size_px: int, backbone: Backbone, cache: Cache, beat: Beat
) -> dict[str, Tensor]:
    """Both mirror images are kept, so that a flip equals encoding the flipped picture."""

    def encode(image: Image.Image) -> dict[str, Tensor]:
        pixels = picture_tensor(image, size_px)[None]
        return {
            "plain": backbone.encode_pictures(pixels)[0],
            "mirrored": backbone.encode_pictures(pixels.flip(-1))[0],
        }

    def encode_file() -> dict[str, Tensor]:
        beat()
        return ask(encode, open_picture(Path(path)))

    return cache.tensors(
        ("latents", READING, backbone.weights["vae_encoder"], str(backbone.dtype), size_px, digest),
        encode_file,
    )


def picture_tensor(image: Image.Image, size_px: int) -> Tensor:
    """Resize to cover, crop the centre -> (3, size, size) in [-1, 1]; DiffSynth's TextImageDataset, centre
    crop.
    """
    image = without_ends(image)
    scale = max(size_px / image.width, size_px / image.height)
    shape = [round(image.height * scale), round(image.width * scale)]
    cropped = tv.center_crop(
        tv.resize(image, shape, interpolation=InterpolationMode.BILINEAR), [size_px, size_px]
    )
    return torch.from_numpy(np.array(cropped, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
