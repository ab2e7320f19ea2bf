"""The images by which a scorer is watched."""

from dataclasses import replace

import pytest
from PIL import Image

from core.backbone.backbone import Backbone
from core.files.files import write_json
from core.folders import TrialFolder
from core.story.canary import IMAGES, canary, rated_again
from core.story.score import score_images
from tests.examples import make_result, make_spec


def test_the_canary_is_five_images_that_the_toy_tells_apart(backbone: Backbone) -> None:
    scores = canary(backbone)
    assert len(scores) == len(IMAGES) == 5
    assert max(scores) - min(scores) > 4
    assert canary(backbone) == scores


def test_a_story_is_rated_again_from_its_files_as_it_was_when_it_was_rendered(
    backbone: Backbone, tmp_path
) -> None:
    base = TrialFolder(tmp_path)
    assert rated_again(backbone, base) == ()
    images = [Image.open(path) for path in IMAGES]
    base.image(1).parent.mkdir()
    for number, image in enumerate(images, start=1):
        image.save(base.image(number))
    scores = score_images(backbone, images).aesthetic
    write_json(base.result, replace(make_result(make_spec(-1, train=None), 5.0), aesthetic=scores))
    assert rated_again(backbone, base) == pytest.approx(scores)
    base.image(3).write_bytes(b"no image")  # the sweep can do without: only the five are compared then
    assert rated_again(backbone, base) == ()
    base.image(3).unlink()
    assert rated_again(backbone, base) == ()
