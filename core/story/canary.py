"""The judge is watched: the scorer rates the same images again whenever a worker starts."""

from pathlib import Path

from core.backbone.backbone import Backbone
from core.data.image import ImageError, open_image
from core.folders import TrialFolder
from core.story.score import rate

# never change them: studies hold their scores
IMAGES = sorted(Path(__file__).with_name("canary").glob("*.png"))


def canary(backbone: Backbone) -> tuple[float, ...]:
    """The scores, 1 to 10, of five images that are shipped: flat, at night, washed, ruined, watercolour."""
    return tuple(rate(backbone, open_image(path)).aesthetic for path in IMAGES)


def rated_again(backbone: Backbone, base: TrialFolder) -> tuple[float, ...]:
    """The scores of the base model's story from its files; empty where one is missing or damaged."""
    result = base.read_result()
    scores = result.aesthetic if result else ()
    try:
        images = [open_image(base.image(number)) for number, _ in enumerate(scores, start=1)]
    except ImageError:
        return ()
    return tuple(rate(backbone, image).aesthetic for image in images)
