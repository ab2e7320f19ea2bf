"""Rate pictures: the aesthetic score of each, and how well the set belongs together.

Raise SCORING_VERSION with any change of this code, of training or of rendering after which the same study, weights and
seeds would score otherwise than before: a study that was started under another version is not gone on with unasked.
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from core.backbone import Backbone

SCORING_VERSION = 1


@dataclass(frozen=True, slots=True)
class Score:
    """`aesthetic` is one number per picture, 1 to 10; `coherence` the mean pairwise cosine of CLIP embeddings."""
    aesthetic: tuple[float, ...]
    coherence: float

    @property
    def mean(self) -> float:
        return sum(self.aesthetic) / len(self.aesthetic)

    @property
    def std(self) -> float:
        """Over the pictures, as a population."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.aesthetic) / len(self.aesthetic))


class NoScoreError(RuntimeError):
    """The scorer gave something that is no number."""


@torch.no_grad()
def score_pictures(backbone: Backbone, pictures: Iterable[Image.Image]) -> Score:
    """Score RGB pictures as `CLIPProcessor` + `AestheticsPredictorV2Linear` do, in fp32. Raises NoScoreError."""
    scorer = backbone.scorer
    embeddings, answers = [], []
    for picture in pictures:  # one at a time: a score must not depend on its neighbours in a batch
        pixels = backbone.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        embedding = scorer.visual_projection(scorer.vision_model(pixel_values=backbone.put(pixels)).pooler_output)
        embedding = F.normalize(embedding, dim=-1)
        embeddings.append(embedding[0])
        answers.append(scorer.layers(embedding)[0, 0])
    aesthetic = torch.stack(answers).tolist()  # one wait for all
    if not all(math.isfinite(value) for value in aesthetic):
        raise NoScoreError(f"the scorer answered {aesthetic}")
    return Score(tuple(aesthetic), _coherence(torch.stack(embeddings)))


def _coherence(embeddings_ND: torch.Tensor) -> float:
    count = len(embeddings_ND)
    if count < 2:
        return 1.0
    cosines = embeddings_ND @ embeddings_ND.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
