"""The product's own training and rendering, on random examples and the prompts of two small stories."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from diffsynth.models.sd_unet import BasicTransformerBlock
from PIL import Image
from safetensors.torch import save_file

from core.backbone.backbone import Backbone
from core.backbone.encode import Examples, TextEmbeddings
from core.files.cache import Cache
from core.kolors.files import FILES
from core.kolors.load import WeightsFolder
from core.lora import adapters
from core.story.render import render_scenes
from core.train.train import train_lora
from core.trial.spec import Rendering, Scene, Training
from tests.gpu.clock import Stopwatch
from tests.gpu.shapes import Shape

PLACES = (
    "by the lake",
    "under the old bridge",
    "in a snowy wood",
    "on a ship at night",
    "in the market",
    "on a mountain road",
    "in the rain",
    "at the harbour",
)
SCENES = tuple(
    Scene(
        prompt=f"watercolor, a girl with a red balloon {place}",
        negative_prompt="blurred, dark",
        seed=101 + number,
    )
    for number, place in enumerate(PLACES)
)


def random_examples(
    backbone: Backbone, latents_CHW: tuple[int, ...], embeddings: TextEmbeddings, count: int = 4
) -> Examples:
    """`count` random latents from one seed, each with one of the first embeddings."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, *latents_CHW, generator=generator).to(backbone.device, backbone.dtype)
    return Examples(
        latents, latents.flip(-1), TextEmbeddings(embeddings.tokens_NTD[:count], embeddings.pooled_ND[:count])
    )


def time_training(backbone: Backbone, examples: Examples, training: Training) -> Stopwatch:
    """Marks after each epoch; the first is the warm-up and holds the making of the adapters."""
    watch = Stopwatch(backbone.device)
    try:
        train_lora(backbone, examples, training, 7, lambda epoch, losses: watch.mark())
    finally:
        adapters.remove(backbone.unet)
    return watch


def time_images(
    backbone: Backbone, stories: Sequence[Sequence[Scene]], rendering: Rendering, cache: Cache
) -> tuple[Stopwatch, list[Image.Image]]:
    """One mark for the warm-up, one after each story; with whatever adapters the UNet wears."""
    watch = Stopwatch(backbone.device)
    list(render_scenes(backbone, stories[0], replace(rendering, steps=2), cache))
    watch.mark()
    images: list[Image.Image] = []
    for story in stories:
        images += render_scenes(backbone, story, rendering, cache)
        watch.mark()
    return watch, images


def time_loading(backbone: Backbone, shape: Shape, folder: Path) -> Stopwatch:
    """Read a UNet of this size with the product's reader, from a file just written (so it may still be in
    memory).
    """
    path = folder / next(file.path for file in FILES if file.part == "unet")
    path.parent.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in backbone.unet.state_dict().items()}, path)
    watch = Stopwatch(backbone.device)
    # The file has DiffSynth's names already: diffusers' own would need diffusers here.
    weights = WeightsFolder(folder, backbone.device, backbone.dtype)
    weights._read("unet", dict, lambda _: shape.unet())
    watch.mark()
    return watch


@contextmanager
def wearing(backbone: Backbone, training: Training) -> Iterator[None]:
    """Fresh adapters on the UNet, as a trial renders with."""
    adapters.inject(backbone.unet, training, seed=1)
    try:
        yield
    finally:
        adapters.remove(backbone.unet)


@contextmanager
def compiled_blocks(backbone: Backbone, backend: str) -> Iterator[None]:
    """Each transformer block compiled by itself (regional compilation): equal blocks share their code."""
    blocks = [module for module in backbone.unet.modules() if isinstance(module, BasicTransformerBlock)]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
