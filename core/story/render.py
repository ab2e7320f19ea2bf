"""Render the story: images in batches, each from its own seed, with classifier-free guidance.

Shape legend: B scenes, C channels, H x W latent cells.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from core.backbone import memory
from core.backbone.backbone import Backbone
from core.backbone.cuda_graph import StepsInFlight, record
from core.backbone.encode import TextEmbeddings, encode_prompts
from core.files.cache import Cache
from core.files.fail_point import fail_point
from core.heartbeat import Heartbeat, no_heartbeat
from core.lora import adapters
from core.trial.spec import Rendering, Scene


def render_scenes(
    backbone: Backbone,
    scenes: Sequence[Scene],
    rendering: Rendering,
    cache: Cache,
    heartbeat: Heartbeat = no_heartbeat,
) -> Iterator[Image.Image]:
    """Yield one image per scene, by the UNet and its adapters; equals DiffSynth's SDXLImagePipeline."""
    positive = encode_prompts([scene.prompt for scene in scenes], backbone, cache)
    negative = encode_prompts([scene.negative_prompt for scene in scenes], backbone, cache)
    noise = torch.cat([scene_noise(scene.seed, rendering.size_px, backbone) for scene in scenes])
    batch = memory.images_at_once(backbone, rendering)
    for first in range(0, len(scenes), batch):
        part = slice(first, first + batch)
        with adapters.in_precision(backbone.unet, backbone.dtype):
            latents = denoise(
                backbone, noise[part], _part(positive, part), _part(negative, part), rendering, heartbeat
            )
        yield from backbone.decode(latents)


def scene_noise(seed: int, size_px: int, backbone: Backbone) -> Tensor:
    """(1, 4, H, W), drawn as DiffSynth does: by a generator on the render device, in the render dtype."""
    generator = torch.Generator(backbone.device).manual_seed(seed)
    shape = (1, 4, size_px // 8, size_px // 8)
    return torch.randn(shape, generator=generator, device=backbone.device, dtype=backbone.dtype)


@torch.no_grad()
def denoise(
    backbone: Backbone,
    latents_BCHW: Tensor,
    positive: TextEmbeddings,
    negative: TextEmbeddings,
    rendering: Rendering,
    heartbeat: Heartbeat = no_heartbeat,
) -> Tensor:
    """DDIM from pure noise to clean latents; both halves of the guidance in one forward.

    Raises Interrupted when `heartbeat` does.
    """
    scheduler = backbone.new_scheduler()
    scheduler.set_timesteps(rendering.steps)
    guided = rendering.cfg_scale != 1.0
    tokens = torch.cat([positive.tokens_NTD, negative.tokens_NTD]) if guided else positive.tokens_NTD
    pooled = torch.cat([positive.pooled_ND, negative.pooled_ND]) if guided else positive.pooled_ND
    # The scheduler reads timesteps on the host, the UNet on the device: with a copy on each no step waits.
    moments = backbone.put(scheduler.timesteps)

    def predict(latents: Tensor, moment: Tensor) -> Tensor:
        inputs = torch.cat([latents, latents]) if guided else latents
        return backbone.predict_noise(inputs, moment, tokens, pooled)

    predict_again, in_flight = record(predict, latents_BCHW, moments[:1]), StepsInFlight(backbone.device)
    for index, timestep in enumerate(scheduler.timesteps):
        noise = predict_again(latents_BCHW, moments[index : index + 1])
        if guided:
            wanted, unwanted = noise.chunk(2)
            noise = unwanted + rendering.cfg_scale * (wanted - unwanted)
        latents_BCHW = scheduler.step(noise, timestep, latents_BCHW)
        in_flight.step()
        heartbeat()
    return latents_BCHW * math.nan if fail_point("latents") == "nan" else latents_BCHW


def _part(embeddings: TextEmbeddings, part: slice) -> TextEmbeddings:
    return TextEmbeddings(embeddings.tokens_NTD[part], embeddings.pooled_ND[part])
