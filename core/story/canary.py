"""The judge is watched: the scorer rates the same images again whenever a worker starts."""

from pathlib import Path

from core.backbone.backbone import Backbone
from core.data.image import open_image
from core.folders import TrialFolder
from core.story.score import rate

IMAGES = sorted(
    Path(__file__).with_name("canary").glob("*.png")
)  # never change them: studies hold their scores


def canary(backbone: Backbone) -> tuple[float, ...]:
    """The scores, 1 to 10, of five images that are shipped: flat, at night, washed, ruined, watercolour."""
    return tuple(rate(backbone, open_image(path)).aesthetic for path in IMAGES)


def rated_again(backbone: Backbone, base: TrialFolder) -> tuple[float, ...]:
    """The scores of the base model's story from its files; empty where it is not complete."""
    result = base.read_result()
    if result is None or result.state != "complete":
        return ()
    paths = [base.image(number) for number in range(1, len(result.aesthetic) + 1)]
    if not all(path.exists() for path in paths):
        return ()
    return tuple(rate(backbone, open_image(path)).aesthetic for path in paths)
