"""What the aesthetic score does not see: style, scenes, sameness, copies, and how pixels are spread.

All from the scorer's own image tower and the pixels; no text. Shape legend: N images of a story, M of the
style, T trained on, D projected embedding, H patch vector, K all patches of an image in one vector, L looks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from core.backbone.backbone import Backbone
from core.data.image import without_ends
from core.story.score import rate

Array = NDArray[np.float32]
GRID = 8  # patches a side that are kept of an image; CLIP's larger grids are averaged down to it
BRIGHTEST = 0.99  # quantile of the levels of an image's channel: its brightest, noise apart
CLIPPED = 1 - 6 / 255  # of the brightest level: from there on a pixel counts as clipped
LOOKS = ("clipped", "saturation", "sharpness")


@dataclass(frozen=True, slots=True)
class Embedded:
    """N images: `projected_ND` (norm 1), `patches_NK` (a GRID x GRID grid), and `looks_NL` as in LOOKS."""

    projected_ND: Array
    patches_NK: Array
    looks_NL: Array

    @property
    def contents(self) -> Array:
        """(N, H), norm 1: the mean patch of each image, what is in it, wherever it is."""
        return unit(self.patches_NK.reshape(len(self.patches_NK), GRID * GRID, -1).mean(1))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The images of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What one story measures. Each look is the story's mean less the style's: 0 is as in the style.

    `style_room` is what images of the style themselves would gain, the scale of `style_gain`.
    """

    style_gain: float
    style_room: float
    scene_kept: float
    sameness: float
    copy_risk: float
    clipped: float
    saturation: float
    sharpness: float


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to look at a story before its score is believed, by one measure.

    `raised` is told whether the story passed the gate.
    """

    name: str
    measure: str
    sentence: str
    raised: Callable[[Measures, bool], bool]


# Thresholds lie between planted tricks and honest LoRAs of the toy (docs/measurements.md).
FLAGS = (
    Flag("collapsed", "sameness", "its images are nearly one and the same", lambda m, _: m.sameness > 0.6),
    Flag(
        "copied", "copy_risk", "it shows an image again that was trained on", lambda m, _: m.copy_risk > 0.75
    ),
    Flag("scenes_lost", "scene_kept", "its images do not show their scenes", lambda m, _: m.scene_kept < 0.5),
    Flag("overexposed", "clipped", "large parts of it are blown out", lambda m, _: m.clipped > 0.25),
    Flag(
        "no_style",
        "style_gain",
        "it passes the gate, but shows no more of the style than the base model",
        lambda m, passed: passed and m.style_gain < 0.1 * m.style_room,
    ),
)


def embed(backbone: Backbone, images: Iterable[Image.Image]) -> Embedded:
    """Embed images one by one, each in one forward pass of the scorer. Raises NoScoreError."""
    ratings = [(rate(backbone, image), image) for image in images]
    side = backbone.image_processor.crop_size["height"] // 2
    return Embedded(
        np.stack([rating.embedding_D.float().cpu().numpy() for rating, _ in ratings]),
        np.stack([grid(rating.patches_PH).cpu().numpy() for rating, _ in ratings]),
        np.stack([looks(image, side) for _, image in ratings]),
    )


def grid(patches_PH: torch.Tensor) -> torch.Tensor:
    """-> (K,): the patches of an image, averaged to GRID x GRID of them, row by row."""
    side = round(len(patches_PH) ** 0.5)
    image_1HSS = patches_PH.float().T.reshape(1, -1, side, side)
    return F.adaptive_avg_pool2d(image_1HSS, GRID)[0].flatten(1).T.flatten()


def looks(image: Image.Image, side_px: int) -> Array:
    """-> (L,) of the image scaled to `side_px`: small enough that the noise of a JPEG does not count.

    `clipped` is the share of pixels at the image's own brightest level, in the channel that has most of them;
    `saturation` HSV's; `sharpness` the root mean square gradient in units of the image's contrast. None of
    them changes when the image is made darker or brighter as a whole.
    """
    scaled = ImageOps.fit(without_ends(image), (side_px, side_px), Image.Resampling.BOX)
    pixels = np.asarray(scaled, dtype=np.float32)
    brightest = np.quantile(pixels, BRIGHTEST, axis=(0, 1))
    clipped = (pixels >= brightest * CLIPPED).mean((0, 1)).max()
    strongest = pixels.max(2)
    saturation = ((strongest - pixels.min(2)) / np.maximum(strongest, 1)).mean()
    grey = pixels.mean(2)
    steps = np.diff(grey, axis=0)[:, :-1] ** 2 + np.diff(grey, axis=1)[:-1] ** 2
    return np.array([clipped, saturation, np.sqrt(steps.mean()) / max(grey.std(), 1)], dtype=np.float32)


def measure(story: Embedded, base: Embedded, style: Embedded, trained: Embedded) -> Measures:
    """Measure a story by the base model's of the same scenes, images of the style, and those trained on."""
    return Measures(
        style_gain=style_gain(story.projected_ND, base.projected_ND, style.projected_ND),
        style_room=likeness(style.projected_ND) - float((base.projected_ND @ style.projected_ND.T).mean()),
        scene_kept=scene_kept(story, base),
        sameness=sameness(story.patches_NK, base.patches_NK),
        copy_risk=copy_risk(story.patches_NK, trained.patches_NK),
        **dict(zip(LOOKS, (story.looks_NL.mean(0) - style.looks_NL.mean(0)).tolist(), strict=True)),
    )


def flags(measures: Measures, passed: bool) -> tuple[Flag, ...]:
    """The flags that these measures raise; `passed`: whether the story passed the gate."""
    return tuple(flag for flag in FLAGS if flag.raised(measures, passed))


def style_gain(story_ND: Array, base_ND: Array, style_MD: Array) -> float:
    """Mean cosine of the story's images to those of the style, less the base model's story's."""
    return float((story_ND @ style_MD.T).mean() - (base_ND @ style_MD.T).mean())


def scene_kept(story: Embedded, base: Embedded) -> float:
    """Whether images show their scenes: near 1 as the base model does, near 0 if any image fits any scene.

    Mean cosine of each image to the base model's of its scene less that to its others, each set's mean taken
    off: what a story's images have in common is style. Half of it by what is in them, half by where it is.
    """

    def kept(story_NH: Array, base_NH: Array) -> float:
        cosines_NN = unit(story_NH - story_NH.mean(0)) @ unit(base_NH - base_NH.mean(0)).T
        return float(cosines_NN.diagonal().mean()) - _off_diagonal_mean(cosines_NN)

    return (kept(story.contents, base.contents) + kept(story.patches_NK, base.patches_NK)) / 2


def sameness(story_NK: Array, base_NK: Array) -> float:
    """How much more alike a story's images are than the base model's: 0 as alike, 1 all the same image."""
    base = likeness(unit(base_NK))
    return (likeness(unit(story_NK)) - base) / (1 - base)


def copy_risk(story_NK: Array, trained_TK: Array) -> float:
    """How near the story comes to an image trained on: 1 equals it, 0 is half as near as those to each other.

    That of the worst image; distances are cosine distances of patch grids, the mean training image taken off,
    and that of training images is the median to their nearest other one. Two images trained on are needed.
    """
    mean_K = trained_TK.mean(0)
    trained, story = unit(trained_TK - mean_K), unit(story_NK - mean_K)
    among_TT = trained @ trained.T
    np.fill_diagonal(among_TT, -1)
    far = max(float(np.median(1 - among_TT.max(1))) / 2, 1e-3)
    return max(0.0, 1 - float(1 - (story @ trained.T).max()) / far)


def likeness(images_ND: Array) -> float:
    """Mean cosine of all pairs of different images, of vectors of norm 1."""
    return _off_diagonal_mean(images_ND @ images_ND.T)


def unit(vectors_ND: Array) -> Array:
    """The vectors, each scaled to norm 1; zero stays zero."""
    norms: Array = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    return (vectors_ND / np.maximum(norms, 1e-8)).astype(np.float32)


def _off_diagonal_mean(cosines_NN: Array) -> float:
    count = len(cosines_NN)
    return float((cosines_NN.sum() - cosines_NN.trace()) / (count * (count - 1)))
