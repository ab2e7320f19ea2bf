"""A score is the scorer's own answer, or an error; never a number made up."""

import copy
import random
import resource
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from core.backbone.backbone import Backbone
from core.backbone.encode import image_tensor
from core.story.score import NoScoreError, Score, score_images
from core.tiny import scenes
from core.verdict import constraint, passes


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = random.Random(11)
    return [
        Image.fromarray(scenes.draw(scenes.random_scene(rng), scenes.watercolour(style)))
        for style in (0.0, 0.5, 1.0)
    ]


def test_a_score_is_the_plain_recipe_s(backbone: Backbone, images: list[Image.Image]) -> None:
    with torch.no_grad():
        plain = backbone.scorer(**backbone.image_processor(images=images, return_tensors="pt")).logits[:, 0]
    assert score_images(backbone, images).aesthetic == pytest.approx(plain.tolist(), abs=1e-4)


def test_an_image_of_another_size_is_scored_by_the_same_recipe(
    backbone: Backbone, images: list[Image.Image]
) -> None:
    wide = images[0].resize((300, 200))
    with torch.no_grad():
        plain = backbone.scorer(**backbone.image_processor(images=wide, return_tensors="pt")).logits[0, 0]
    assert score_images(backbone, [wide]).aesthetic[0] == pytest.approx(float(plain), abs=1e-4)


def test_a_score_does_not_depend_on_its_neighbours(backbone: Backbone, images: list[Image.Image]) -> None:
    together = score_images(backbone, images).aesthetic
    assert together == tuple(score_images(backbone, [image]).aesthetic[0] for image in images)


@pytest.mark.parametrize("size", [(64, 1), (64, 2), (64, 3), (1, 64), (3, 3), (1, 1)])
def test_an_image_of_few_pixels_is_scored_as_the_same_made_larger(
    backbone: Backbone, images: list[Image.Image], size: tuple[int, int]
) -> None:
    """Of three rows the processor makes three channels unless it is told."""
    small = images[0].resize(size)
    larger = small.resize((4 * size[0], 4 * size[1]), Image.Resampling.NEAREST)
    assert score_images(backbone, [small]).aesthetic[0] == pytest.approx(
        score_images(backbone, [larger]).aesthetic[0], abs=1
    )


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_strip_costs_neither_gigabytes_nor_seconds(
    backbone: Backbone, images: list[Image.Image], size: tuple[int, int]
) -> None:
    strip = images[0].resize(size)
    score_images(backbone, images[:1])
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 1 < score_images(backbone, [strip]).aesthetic[0] < 10
    assert image_tensor(strip, 1024).shape == (3, 1024, 1024)
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error(
    backbone: Backbone, images: list[Image.Image], value: float
) -> None:
    scorer = copy.deepcopy(backbone.scorer)
    scorer.layers[-1].bias.data.fill_(value)
    with pytest.raises(NoScoreError):
        score_images(replace(backbone, readers={"scorer": lambda: scorer}, _parts={}), images)


def test_identical_images_are_wholly_coherent(backbone: Backbone, images: list[Image.Image]) -> None:
    assert score_images(backbone, [images[0]] * 3).coherence == pytest.approx(1, abs=1e-5)


def test_different_images_are_less_coherent(backbone: Backbone, images: list[Image.Image]) -> None:
    assert score_images(backbone, images).coherence < 0.999


def test_mean_and_std_are_over_the_images() -> None:
    score = Score((5.0, 6.0, 7.0, 8.0), 1.0)
    assert (score.mean, score.std) == (6.5, pytest.approx(1.25**0.5))


def test_the_gate_is_passed_at_its_own_height() -> None:
    assert passes(6.0, 6.0)
    assert not passes(5.999, 6.0)
    assert constraint(6.0, 6.0) == 0
    assert constraint(5.0, 6.0) == 1
