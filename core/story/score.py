"""Rate images: the aesthetic score of each, and how similar they are to each other.

Raise core.verdict.SCORING_VERSION with any change here that changes scores.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from core.backbone.backbone import Backbone
from core.data.image import without_ends
from core.errors import LoraSweepError


@dataclass(frozen=True, slots=True)
class Score:
    """`aesthetic`: one number per image, 1 to 10; `coherence`: mean pairwise cosine of CLIP embeddings."""

    aesthetic: tuple[float, ...]
    coherence: float

    @property
    def mean(self) -> float:
        """The mean aesthetic score, which the gate is about."""
        return sum(self.aesthetic) / len(self.aesthetic)

    @property
    def std(self) -> float:
        """The population standard deviation of the aesthetic scores."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.aesthetic) / len(self.aesthetic))


@dataclass(frozen=True, slots=True)
class Rating:
    """The scorer's output for one image: its score, its normalised CLIP embedding, and one vector per patch.

    `patches_PH` is the image tower's last layer, P patches row by row, H wide.
    """

    aesthetic: float
    embedding_D: torch.Tensor
    patches_PH: torch.Tensor


class NoScoreError(LoraSweepError):
    """The scorer returned NaN or infinity."""


def score_images(backbone: Backbone, images: Iterable[Image.Image]) -> Score:
    """Score RGB images as CLIPProcessor and AestheticsPredictorV2Linear do, in fp32. Raises NoScoreError."""
    return score_of([rate(backbone, image) for image in images])


@torch.no_grad()
def rate(backbone: Backbone, image: Image.Image) -> Rating:
    """Score one image alone: a score must not depend on the rest of a batch. Raises NoScoreError."""
    scorer = backbone.scorer
    # The processor would take the rows of an image one to three pixels high for its channels.
    pixels = backbone.image_processor(
        images=without_ends(image), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]
    tower = scorer.vision_model(pixel_values=backbone.put(pixels))
    embedding = F.normalize(scorer.visual_projection(tower.pooler_output), dim=-1)
    aesthetic = float(scorer.layers(embedding)[0, 0])
    if not math.isfinite(aesthetic):
        raise NoScoreError(f"the scorer gave {aesthetic}, which is no score")
    return Rating(aesthetic, embedding[0], tower.last_hidden_state[0, 1:])  # without the class token


def score_of(ratings: Sequence[Rating]) -> Score:
    """The score of a set of images from the ratings of each; a single image has coherence 1."""
    embeddings_ND = torch.stack([rating.embedding_D for rating in ratings])
    return Score(tuple(rating.aesthetic for rating in ratings), _coherence(embeddings_ND))


def _coherence(embeddings_ND: torch.Tensor) -> float:
    count = len(embeddings_ND)
    if count < 2:
        return 1.0
    cosines = embeddings_ND @ embeddings_ND.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
