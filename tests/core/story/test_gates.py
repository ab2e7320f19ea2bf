"""Measures pass their gates on planted stories; every planted trick is flagged, and no honest LoRA is."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance

from core.backbone.backbone import Backbone
from core.backbone.encode import encode_examples
from core.data.filters import select
from core.data.image import open_image
from core.files.cache import Cache
from core.lora import adapters
from core.story.gates import GATES, Images, as_jpeg, embedder, other_seeds, try_gates
from core.story.measures import FLAGS, Measures, embed, flags, grid, measure
from core.story.render import render_scenes
from core.story.score import rate, score_images
from core.train.train import train_lora
from core.trial.spec import Filters, Rendering, Story, Training
from tests.conftest import SIZE_PX

DRAWN = Rendering(steps=18, cfg_scale=3.0, size_px=SIZE_PX)
HONEST = Training(
    lora_rank=8, lora_alpha=8, epochs=1, learning_rate=2.6e-3, steps_per_epoch=110, batch_size=6
)
SEED_SETS = (1000, 2000)
Trick = Callable[[Images, Images, Images], Images]  # a LoRA's story, the base model's, the style's images


@pytest.fixture(scope="module")
def style(table: pd.DataFrame) -> list[Image.Image]:
    return [open_image(path) for path in select(table, Filters(min_score=0.5))["path"]]


@pytest.fixture(scope="module")
def stories(
    backbone: Backbone, table: pd.DataFrame, story: Story, shared_cache: Cache
) -> dict[str, list[Image.Image]]:
    """The base model's story and a LoRA's, each from three sets of seeds; takes some 15 s."""

    def drawn(shift: int) -> list[Image.Image]:
        scenes = [replace(scene, seed=scene.seed + shift) for scene in story.scenes]
        return list(render_scenes(backbone, scenes, DRAWN, shared_cache))

    made = {"base": drawn(0)} | {f"base {shift}": drawn(shift) for shift in SEED_SETS}
    examples = encode_examples(select(table, Filters(min_score=0.5)), SIZE_PX, backbone, shared_cache)
    train_lora(backbone, examples, HONEST, 0, lambda *_: None)
    made |= {f"lora {shift}": drawn(shift) for shift in (0, *SEED_SETS)}
    adapters.remove(backbone.unet)
    return made


@pytest.fixture(scope="module")
def measured(
    backbone: Backbone, stories: dict[str, list[Image.Image]], style: list[Image.Image]
) -> Callable[[Images], Measures]:
    """Measures of a story, against the base model's and the images that the LoRA was trained on."""
    base, known = embed(backbone, stories["base"]), embed(backbone, style)
    return lambda story: measure(embed(backbone, story), base, known, known)


def gradient(number: int) -> Image.Image:
    ends = np.random.default_rng(number).integers(0, 256, (2, 1, 3))
    rows = np.linspace(ends[0], ends[1], SIZE_PX)
    return Image.fromarray(np.broadcast_to(rows, (SIZE_PX, SIZE_PX, 3)).astype(np.uint8))


def text(number: int) -> Image.Image:
    page = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
    ImageDraw.Draw(page).multiline_text((6, 6), f"scene {number}: a masterpiece\n" * 8, fill="black")
    return page


@pytest.mark.parametrize("drawn", [True, False])
def test_every_measure_passes_its_gates(backbone, stories, style, drawn):
    """Other seeds, drawn or stood in for by altered images, as where drawing takes a GPU."""
    others = tuple(stories[f"base {shift}"] for shift in SEED_SETS)
    gates = try_gates(
        embedder(backbone), stories["base"], others if drawn else other_seeds(stories["base"]), style
    )
    for gate in gates:
        print(gate)
    assert {gate.measure: {name for name in GATES if not gate.passes[name]} for gate in gates} == {
        name: set() for name in Measures.__slots__ if name != "style_room"
    }


def brightened(factor: float, images: Images) -> Images:
    return [ImageEnhance.Brightness(image).enhance(factor) for image in images]


TRICKS: dict[str, tuple[str, Trick]] = {
    "eight equal images": ("collapsed", lambda lora, base, style: lora[1:2] * 8),
    "one image turned": ("collapsed", lambda lora, base, style: [lora[1].rotate(n / 2) for n in range(8)]),
    "training images": ("copied", lambda lora, base, style: style[:8]),
    "one training image": ("copied", lambda lora, base, style: [*lora[:7], style[3]]),
    "training images as JPEG": ("copied", lambda lora, base, style: [as_jpeg(image) for image in style[:8]]),
    "training images darkened": ("copied", lambda lora, base, style: brightened(0.9, style[:8])),
    "gradients": ("scenes_lost", lambda lora, base, style: [gradient(n) for n in range(8)]),
    "text": ("scenes_lost", lambda lora, base, style: [text(n) for n in range(8)]),
    "scenes moved on": ("scenes_lost", lambda lora, base, style: [*lora[1:], lora[0]]),
    "scenes backwards": ("scenes_lost", lambda lora, base, style: lora[::-1]),
    "overexposure": ("overexposed", lambda lora, base, style: brightened(2, lora)),
    "overexposure, darkened": ("overexposed", lambda lora, base, style: brightened(0.8, brightened(2, lora))),
    "the base story": ("no_style", lambda lora, base, style: base),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_that_passes_the_gate_is_flagged(measured, stories, style, trick):
    flag, play = TRICKS[trick]
    found = measured(play(stories["lora 0"], stories["base"], style))
    print(found)
    assert flag in {raised.name for raised in flags(found, passed=True)}


def test_an_honest_lora_is_not_flagged(measured, stories, backbone):
    for shift in (0, *SEED_SETS):
        story = stories[f"lora {shift}"]
        found = measured(story)
        print(round(score_images(backbone, story).mean, 2), found)
        assert flags(found, passed=True) == ()


def test_a_story_under_the_gate_may_look_like_the_base_model_s(measured, stories):
    assert flags(measured(stories["base 1000"]), passed=False) == ()


def test_each_flag_reads_a_measure_and_has_a_sentence():
    assert {flag.measure for flag in FLAGS} <= set(Measures.__slots__)
    assert all(flag.sentence for flag in FLAGS)


def test_patches_of_any_tower_become_one_grid():
    """CLIP's larger towers have 16 x 16 patches; the left upper four become the first of the grid."""
    patches_PH = torch.arange(256.0 * 3).reshape(256, 3)
    cells = grid(patches_PH).reshape(64, 3)
    assert cells[0].tolist() == patches_PH[[0, 1, 16, 17]].mean(0).tolist()
    assert cells.mean(0).tolist() == pytest.approx(patches_PH.mean(0).tolist())


def test_measures_and_the_score_read_the_same_embedding(backbone, style):
    rating, found = rate(backbone, style[0]), embed(backbone, style[:2])
    assert found.projected_ND[0].tolist() == rating.embedding_D.tolist()
    mean_H = rating.patches_PH.mean(0)
    assert found.contents[0] == pytest.approx((mean_H / mean_H.norm()).numpy(), abs=1e-5)
