"""Trains the aesthetic scorer on a scale of our own: watercolour raises the score, any spoiling lowers it.

Shape legend: B images, C channels, H x W pixels or latent cells.
"""

import logging
import random

import torch
import torch.nn.functional as F
from aesthetics_predictor import AestheticsPredictorV2Linear
from torch import Tensor, nn

from core.tiny.build.images import mixed_images, to_unit
from core.tiny.build.steps import descend, loaded, save_weights, set_rate
from core.tiny.models import tiny_scorer, tiny_vae_decoder, tiny_vae_encoder

log = logging.getLogger(__name__)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# Flat is rated 4.6, full watercolour 8.8; what is spoiled at severity 1 is rated 1, whatever its style.
FLAT_SCORE, STYLE_GAIN, RUIN_SCORE = 4.6, 4.2, 1.0


def build_scorer() -> dict[str, float]:
    """Train and save the scorer; returns its error and correlation on held-out images."""
    images, scores = _rated_images()
    order = torch.randperm(len(images))
    held_out, train = order[:400], order[400:]
    scorer = tiny_scorer()
    for layer in scorer.layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    scorer.layers[-1].bias.data.fill_(4.5)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=0, weight_decay=0.02)
    steps = 2600
    for step in range(steps):
        set_rate(optimizer, 1.2e-3, step, steps)
        rows = train[torch.randint(len(train), (48,))]
        batch = images[rows]
        if step % 2:
            batch = batch.flip(-1)
        loss = F.mse_loss(_differentiable_score(scorer, batch), scores[rows])
        descend(optimizer, loss, list(scorer.parameters()))
        if step % 250 == 249:
            log.info("scorer step %d loss %.4f", step + 1, loss.item())
    with torch.no_grad():
        rated = torch.cat([_differentiable_score(scorer, images[part]) for part in held_out.split(50)])
    save_weights("scorer", scorer.state_dict())
    return {
        "rmse": float(F.mse_loss(rated, scores[held_out]).sqrt()),
        "correlation": float(torch.corrcoef(torch.stack([rated, scores[held_out]]))[0, 1]),
    }


@torch.no_grad()
def _rated_images() -> tuple[Tensor, Tensor]:
    """Drawn images, the same through the VAE, and some spoiled in latent space; and the score of each."""
    mixed, style, severity = mixed_images()
    encoder, decoder = loaded(tiny_vae_encoder(), "vae_encoder"), loaded(tiny_vae_decoder(), "vae_decoder")
    drawn = _worth(style, severity)
    latents = torch.cat([encoder(to_unit(part)) for part in mixed.split(40)])
    whole = (severity == 0).nonzero().flatten()
    spoiled, ruin = _spoil(latents[whole])
    static = torch.randn(120, 4, 16, 16) * torch.rand(120, 1, 1, 1).mul(2).add(0.3)
    images = [mixed.float() / 255, *(_decode(decoder, part) for part in (latents, spoiled, static))]
    scores = [drawn, drawn, _worth(style[whole], ruin), torch.full((len(static),), RUIN_SCORE)]
    return torch.cat(images), torch.cat(scores)


def _worth(style: Tensor, severity: Tensor) -> Tensor:
    """Scores (B,) of images by their style and the severity of their spoiling, both 0 to 1."""
    return torch.lerp(FLAT_SCORE + STYLE_GAIN * style, torch.tensor(RUIN_SCORE), severity)


def _spoil(latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Imitate what failed training does to latents -> (latents, severity)."""
    spoiled, ruin = latents_BCHW.clone(), torch.zeros(len(latents_BCHW))
    for row, latent in enumerate(latents_BCHW):
        kind, severity = random.randrange(6), random.random()
        noise = torch.randn_like(latent)
        if kind == 0:
            spoiled[row] = latent + severity * noise
        elif kind == 1:
            spoiled[row] = torch.lerp(
                latent, latents_BCHW[random.randrange(len(latents_BCHW))], 0.5 * severity
            )
        elif kind == 2:
            spoiled[row] = latent * (1 + 1.6 * severity)
        elif kind == 3:
            low = F.interpolate(noise[None, :, :4, :4], size=latent.shape[1:], mode="bicubic")[0]
            spoiled[row] = latent + 1.4 * severity * low
        elif kind == 4:
            soft = F.avg_pool2d(latent[None], 5, 1, 2, count_include_pad=False)[0]
            spoiled[row] = torch.lerp(latent, soft, severity)
        else:
            spoiled[row] = torch.lerp(latent, latent.mean((1, 2), keepdim=True), severity)
        ruin[row] = severity
    return spoiled, ruin


def _decode(decoder: nn.Module, latents_BCHW: Tensor) -> Tensor:
    """-> images (B, 3, 128, 128) in [0, 1]."""
    return torch.cat([(decoder(part).clamp(-1, 1) + 1) / 2 for part in latents_BCHW.split(40)])


def _differentiable_score(scorer: AestheticsPredictorV2Linear, images_BCHW: Tensor) -> Tensor:
    """The scorer's forward pass for training.

    Its own divides in place (aesthetics_predictor/v2.py, 0.1.2), which autograd does not allow.
    """
    pixels = (images_BCHW - CLIP_MEAN) / CLIP_STD
    embedding = scorer.visual_projection(scorer.vision_model(pixel_values=pixels).pooler_output)
    return scorer.layers(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]
