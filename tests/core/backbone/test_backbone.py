"""The model seam says what DiffSynth's own parts say."""

import random

import numpy as np
import pytest
import torch
from diffsynth.pipelines.base import BasePipeline

from core.backbone.backbone import Backbone, load_backbone
from core.tiny import scenes
from core.trial.spec import Story


def test_an_unknown_backbone_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'kolor'.*allowed: tiny"):
        load_backbone("kolor")


def test_an_unknown_precision_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'fp8'.*allowed: fp32"):
        load_backbone("tiny", precision="fp8")


def test_text_is_encoded_as_the_prompter_encodes_it(backbone: Backbone, story: Story) -> None:
    prompt = story.scenes[0].prompt
    ours = backbone.encode_text([prompt])
    with torch.no_grad():
        pooled_BD, tokens_BTD = backbone.prompter.encode_prompt(prompt, device="cpu")
    assert ours[0].shape == (1, 256, 64)
    assert torch.equal(ours[0], tokens_BTD)
    assert torch.equal(ours[1], pooled_BD)


def test_latents_are_decoded_to_the_bits_of_diffsynth(backbone: Backbone) -> None:
    latents_BCHW = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    pipe = BasePipeline(device="cpu", torch_dtype=torch.float32)
    with torch.no_grad():
        pixels = backbone.vae_decoder(latents_BCHW.contiguous(memory_format=torch.channels_last))
    for image, pixel in zip(backbone.decode(latents_BCHW), pixels, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(pipe.vae_output_to_image(pixel[None])))


def test_an_image_becomes_an_eighth_of_its_size(backbone: Backbone) -> None:
    pixels = (
        torch.from_numpy(scenes.draw(scenes.random_scene(random.Random(1)))).permute(2, 0, 1)[None] / 127.5
        - 1
    )
    assert backbone.encode_images(pixels).shape == (1, 4, 16, 16)


def test_the_base_model_is_frozen(backbone: Backbone) -> None:
    for part in (
        backbone.unet,
        backbone.vae_encoder,
        backbone.vae_decoder,
        backbone.prompter.text_encoder,
        backbone.scorer,
    ):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_every_part_has_a_fingerprint(backbone: Backbone) -> None:
    assert set(backbone.weights) == {"unet", "vae_encoder", "vae_decoder", "text_encoder", "scorer"}
    assert all(len(digest) == 64 for digest in backbone.weights.values())


def test_a_scheduler_is_one_s_own(backbone: Backbone) -> None:
    """Rendering shortens a scheduler's timesteps in place; nobody else may see that."""
    backbone.new_scheduler().set_timesteps(5)
    full = backbone.new_scheduler()
    full.set_timesteps(1100)
    assert full.timesteps.tolist() == list(range(1099, -1, -1))
