"""The story is drawn as stock DiffSynth draws it, alone or in a batch."""

from dataclasses import replace

import numpy as np
import torch
from diffsynth import SDXLImagePipeline
from PIL import Image

from core.backbone.backbone import Backbone
from core.files.cache import Cache
from core.lora import adapters
from core.story.render import render_scenes, scene_noise
from core.trial.spec import Rendering, Story, Training

RENDERING = Rendering(steps=4, cfg_scale=3.0, size_px=128)


def stock_pipeline(backbone: Backbone) -> SDXLImagePipeline:
    pipe = SDXLImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.scheduler, pipe.prompter = backbone.new_scheduler(), backbone.prompter
    pipe.text_encoder_kolors, pipe.unet = backbone.prompter.text_encoder, backbone.unet
    pipe.vae_encoder, pipe.vae_decoder = backbone.vae_encoder, backbone.vae_decoder
    return pipe


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def check_against_stock(backbone: Backbone, story: Story, rendering: Rendering, cache: Cache) -> None:
    pipe = stock_pipeline(backbone)
    scenes = story.scenes[:2]
    for scene, ours in zip(scenes, render_scenes(backbone, scenes, rendering, cache), strict=True):
        stock = pipe(
            scene.prompt,
            negative_prompt=scene.negative_prompt,
            cfg_scale=rendering.cfg_scale,
            height=rendering.size_px,
            width=rendering.size_px,
            num_inference_steps=rendering.steps,
            seed=scene.seed,
            progress_bar_cmd=list,
        )
        assert levels_apart(ours, stock) <= 2


def test_a_batch_equals_diffsynth_s_pipeline_image_by_image(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    check_against_stock(backbone, story, RENDERING, cache)


def test_with_a_lora_on_it_equals_diffsynth_s_pipeline(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    adapters.inject(backbone.unet, Training(lora_rank=4, lora_alpha=8), seed=1)
    for index, parameter in enumerate(adapters.trained_parameters(backbone.unet).values()):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    check_against_stock(backbone, story, RENDERING, cache)


def test_a_negative_prompt_is_heard_as_diffsynth_hears_it(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    scenes = tuple(replace(scene, negative_prompt="夜晚") for scene in story.scenes)
    check_against_stock(backbone, replace(story, scenes=scenes), RENDERING, cache)


def test_without_guidance_it_equals_diffsynth_s_pipeline(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    check_against_stock(backbone, story, replace(RENDERING, cfg_scale=1.0), cache)


def test_a_scene_drawn_alone_is_the_scene_of_the_batch(
    backbone: Backbone, story: Story, cache: Cache
) -> None:
    together = list(render_scenes(backbone, story.scenes, RENDERING, cache))
    assert len(together) == 8
    for index in (0, 5):
        (alone,) = render_scenes(backbone, story.scenes[index : index + 1], RENDERING, cache)
        assert levels_apart(alone, together[index]) <= 2


def test_more_scenes_than_one_batch_come_out_in_order(backbone: Backbone, story: Story, cache: Cache) -> None:
    long = story.scenes + story.scenes[:2]
    images = list(render_scenes(backbone, long, replace(RENDERING, steps=1), cache))
    assert len(images) == 10
    assert [levels_apart(images[index], images[8 + index]) <= 2 for index in (0, 1)] == [True, True]


def test_the_same_words_give_the_same_images(backbone: Backbone, story: Story, cache: Cache) -> None:
    one, other = (list(render_scenes(backbone, story.scenes[:2], RENDERING, cache)) for _ in range(2))
    assert [image.tobytes() for image in one] == [image.tobytes() for image in other]


def test_another_seed_gives_another_image(backbone: Backbone, story: Story, cache: Cache) -> None:
    scene = story.scenes[0]
    one, other = render_scenes(backbone, [scene, replace(scene, seed=scene.seed + 1)], RENDERING, cache)
    assert levels_apart(one, other) > 20


def test_the_noise_of_a_scene_is_diffsynth_s(backbone: Backbone) -> None:
    stock = stock_pipeline(backbone).generate_noise(
        (1, 4, 16, 16), seed=101, device="cpu", dtype=torch.float32
    )
    assert torch.equal(scene_noise(101, 128, backbone), stock)
