"""The toy is DiffSynth's Kolors at toy width, its weights fit, and its scorer tells good from bad."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffsynth.models.kolors_text_encoder import ChatGLMModel
from diffsynth.models.sdxl_unet import SDXLUNet
from diffsynth.models.sdxl_vae_decoder import SDXLVAEDecoder
from diffsynth.models.sdxl_vae_encoder import SDXLVAEEncoder
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file

from core.backbone.backbone import Backbone
from core.data.folder import read_folder
from core.story.score import score_images
from core.tiny import demo_data, models, scenes
from core.trial.spec import Data
from tests.conftest import STUDIES

SETS, SET_SIZE = 6, 8
EMBEDDING = "embedding.word_embeddings.weight"


def empty_model(part: str) -> torch.nn.Module:
    return {
        "unet": models.tiny_unet,
        "vae_encoder": models.tiny_vae_encoder,
        "vae_decoder": models.tiny_vae_decoder,
        "text_encoder": models.tiny_text_encoder,
        "scorer": models.tiny_scorer,
    }[part]()


def draw(seed: int, style: float) -> np.ndarray:
    return scenes.draw(scenes.random_scene(random.Random(seed)), scenes.watercolour(style))


def scores(backbone: Backbone, images: list[np.ndarray]) -> np.ndarray:
    return np.array(score_images(backbone, [Image.fromarray(image) for image in images]).aesthetic)


def test_the_shipped_parts_are_the_five_that_the_loader_reads() -> None:
    assert {path.stem for path in models.WEIGHTS.glob("*.safetensors")} == {
        "unet",
        "vae_encoder",
        "vae_decoder",
        "text_encoder",
        "scorer",
    }


@pytest.mark.parametrize("part", ["unet", "vae_encoder", "vae_decoder", "text_encoder", "scorer"])
def test_a_shipped_file_has_the_names_and_shapes_of_its_model(part: str) -> None:
    shipped = {
        name: tensor.shape for name, tensor in load_file(models.WEIGHTS / f"{part}.safetensors").items()
    }
    expected = {name: tensor.shape for name, tensor in empty_model(part).state_dict().items()}
    if part == "text_encoder":  # only the taught rows of the embedding are shipped
        taught = shipped.pop("embedding.used_ids")
        assert shipped.pop("embedding.rows") == (*taught, models.TEXT_WIDTH)
        assert expected.pop(EMBEDDING) == (models.VOCABULARY, models.TEXT_WIDTH)
    assert shipped == expected


@pytest.mark.parametrize("part", ["unet", "vae_encoder", "vae_decoder", "text_encoder", "scorer"])
def test_shipped_weights_are_finite_fp16(part: str) -> None:
    tensors = load_file(models.WEIGHTS / f"{part}.safetensors")
    tensors.pop("embedding.used_ids", None)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_shipped_weights_are_at_most_10_mb() -> None:
    assert sum(path.stat().st_size for path in models.WEIGHTS.iterdir()) <= 10_000_000


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("unet", SDXLUNet),
        ("vae_encoder", SDXLVAEEncoder),
        ("vae_decoder", SDXLVAEDecoder),
        ("scorer", AestheticsPredictorV2Linear),
    ],
)
def test_the_tiny_parts_are_the_real_classes(backbone: Backbone, part: str, kind: type) -> None:
    assert isinstance(getattr(backbone, part), kind)


def test_the_tiny_parts_keep_the_real_forward_passes() -> None:
    assert type(models.tiny_unet()).forward is SDXLUNet.forward
    assert type(models.tiny_vae_encoder()).forward is SDXLVAEEncoder.forward
    assert type(models.tiny_vae_decoder()).forward is SDXLVAEDecoder.forward


def test_the_text_encoder_is_chatglm(backbone: Backbone) -> None:
    assert type(backbone.prompter.text_encoder) is ChatGLMModel


def test_the_tiny_unet_has_the_block_sequence_of_kolors(backbone: Backbone) -> None:
    with torch.device("meta"):
        kolors = SDXLUNet(is_kolors=True)
    assert [type(block) for block in backbone.unet.blocks] == [type(block) for block in kolors.blocks]


@pytest.mark.parametrize("style", [0.0, 1.0])
def test_the_vae_restores_drawn_images(backbone: Backbone, style: float) -> None:
    drawn = (
        torch.from_numpy(np.stack([draw(seed, style) for seed in range(8)])).permute(0, 3, 1, 2) / 127.5 - 1
    )
    with torch.no_grad():
        restored = backbone.vae_decoder(backbone.encode_images(drawn)).clamp(-1, 1)
    psnr_db = 10 * torch.log10(4 / (restored - drawn).square().mean((1, 2, 3)))
    print(f"\nVAE, style {style}: PSNR {psnr_db.mean():.1f} dB, worst {psnr_db.min():.1f} dB")
    assert psnr_db.mean() > 24


def test_the_vae_gives_latents_of_about_unit_size(backbone: Backbone) -> None:
    """Noise of standard deviation 1 must neither drown them nor vanish in them."""
    drawn = torch.from_numpy(np.stack([draw(seed, 0) for seed in range(8)])).permute(0, 3, 1, 2) / 127.5 - 1
    stds = backbone.encode_images(drawn).std((0, 2, 3))
    assert ((stds > 0.5) & (stds < 2)).all(), stds


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a red hair girl in blue dress, dragon on the left, sea", "dragon"),
        ("红发女孩穿着蓝裙子，左边有恐龙，海边", "龙"),
    ],
)
def test_an_unknown_word_is_named(backbone: Backbone, prompt: str, word: str) -> None:
    assert word in "".join(backbone.unknown_words([prompt]))


@pytest.mark.parametrize("chinese", [True, False])
def test_every_word_a_scene_can_be_told_in_is_known(backbone: Backbone, chinese: bool) -> None:
    rng = random.Random(3)
    told = [
        scenes.caption(scenes.random_scene(rng), chinese=chinese, verb=verb)
        for verb in scenes.VERBS
        for _ in range(40)
    ]
    assert backbone.unknown_words(told) == []
    assert backbone.unknown_words([*scenes.KINDS.keys(), *scenes.KINDS.values()]) == []


@pytest.mark.parametrize("name", ["lake_painter", "balloon_girl"])
def test_the_scenes_of_the_shipped_stories_are_known(backbone: Backbone, name: str) -> None:
    words = yaml.safe_load((STUDIES / "stories" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert backbone.unknown_words([scene["prompt"] for scene in words["scenes"]]) == []


def test_an_unknown_word_is_told_once_in_order_of_appearance(backbone: Backbone) -> None:
    words = backbone.unknown_words(["dragon, sea", "a robot and a dragon"])
    assert words == list(dict.fromkeys(words))
    assert "".join(words).index("dragon") < "".join(words).index("robot")


def test_the_demo_data_can_be_drawn_again(data: Data, tmp_path: Path) -> None:
    """By pixel: another zlib packs the same PNG into other bytes."""
    rows = demo_data.write_images(tmp_path, random.Random(demo_data.SEED))
    shipped = read_folder(data).images
    assert rows == [(image.file, image.prompt) for image in shipped]
    for image in shipped[:-1]:
        again, before = (
            np.asarray(Image.open(folder / image.file), np.int16) for folder in (tmp_path, image.path.parent)
        )
        assert again.shape == before.shape
        assert np.abs(again - before).max() <= 1, image.file


def test_the_last_image_of_the_demo_data_is_broken(data: Data) -> None:
    with (
        pytest.raises((OSError, SyntaxError, UnidentifiedImageError)),
        Image.open(read_folder(data).images[-1].path) as image,
    ):
        image.load()


def test_the_scorer_lifts_watercolour_over_the_gate_and_keeps_flat_images_under(backbone: Backbone) -> None:
    seeds = range(1000, 1000 + SETS * SET_SIZE)
    flat, painted = (scores(backbone, [draw(seed, style) for seed in seeds]) for style in (0.0, 1.0))
    set_std = np.sqrt(
        (flat.reshape(SETS, SET_SIZE).mean(1).var() + painted.reshape(SETS, SET_SIZE).mean(1).var()) / 2
    )
    signal = painted.mean() - flat.mean()
    print(
        f"\nflat {flat.mean():.2f}, watercolour {painted.mean():.2f}, signal {signal:.2f}, "
        f"std of an image {flat.std():.2f} and {painted.std():.2f}, of a set of {SET_SIZE} {set_std:.2f}"
    )
    assert flat.mean() < 5.5
    assert painted.mean() > 6.0
    assert signal > 4 * set_std


def test_the_scorer_rises_with_the_style(backbone: Backbone) -> None:
    means = [
        scores(backbone, [draw(seed, style) for seed in range(1000, 1016)]).mean()
        for style in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert means == sorted(means)


def test_the_scorer_punishes_spoiled_images(backbone: Backbone) -> None:
    spoiled = [scenes.degrade(draw(seed, 0.0), random.Random(seed)) for seed in range(1000, 1048)]
    rated = scores(backbone, [image for image, _ in spoiled])
    print(f"\nspoiled flat images {rated.mean():.2f}")
    assert rated.mean() < 4
    assert np.corrcoef(rated, [severity for _, severity in spoiled])[0, 1] < -0.6


def test_the_scorer_gives_pure_noise_next_to_nothing(backbone: Backbone) -> None:
    """Noise as an untrained or ruined UNet leaves it: in the latent space."""
    latents = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rated = np.array(score_images(backbone, backbone.decode(latents)).aesthetic)
    print(f"\npure latent noise {rated.mean():.2f}, worst {rated.max():.2f}")
    assert rated.mean() < 2.5
