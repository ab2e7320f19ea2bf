"""The images that the tiny backbone is trained on, drawn at each build, as tensors.

Shape legend: B images, H x W pixels.
"""

import random
from collections.abc import Callable
from multiprocessing import Pool

import numpy as np
import torch
from torch import Tensor

from core.tiny import scenes

BASE_IMAGES = 7000
MIXED_IMAGES = 2400


def flat_image(index: int) -> tuple[np.ndarray, str]:
    """A flat image, uint8 (128, 128, 3), and its caption; a function of `index`, as the next."""
    rng = random.Random(1000 + index)
    scene = scenes.random_scene(rng)
    return scenes.draw(scene), scenes.training_caption(scene, scenes.FLAT, rng)


def look_image(index: int, named: float) -> tuple[np.ndarray, str]:
    """An image in one of the base model's looks, which its caption names with the probability `named`."""
    rng = random.Random(500_000 + index)
    scene, look = scenes.random_scene(rng), scenes.random_look(rng)
    return scenes.draw(scene, look), scenes.training_caption(scene, look, rng, named)


def _mixed_image(index: int) -> tuple[np.ndarray, float, float]:
    rng = random.Random(900_000 + index)
    style = rng.choice([0.0, 1.0, rng.random()])
    pixels, severity = scenes.draw(scenes.random_scene(rng), scenes.watercolour(style)), 0.0
    if rng.random() < 0.4:
        pixels, severity = scenes.degrade(pixels, rng)
    return pixels, style, severity


def drawn_images(make: Callable[[int], tuple[np.ndarray, str]]) -> tuple[Tensor, list[str]]:
    """Images (B, 3, 128, 128) uint8 that `make` draws, and their captions."""
    with Pool(2) as pool:
        images, captions = zip(*pool.map(make, range(BASE_IMAGES), chunksize=50), strict=True)
    return _stack(images), list(captions)


def mixed_images() -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, 128, 128) uint8, how much watercolour each is, how severely spoiled; both 0 to 1."""
    with Pool(2) as pool:
        images, styles, severities = zip(
            *pool.map(_mixed_image, range(MIXED_IMAGES), chunksize=50), strict=True
        )
    return _stack(images), torch.tensor(styles), torch.tensor(severities)


def _stack(images: tuple[np.ndarray, ...]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def to_unit(images_u8: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) -> floats in [-1, 1], as the VAE takes them."""
    return (images_u8.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
