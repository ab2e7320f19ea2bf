"""Trains the VAE, with four latent channels of unit variance, on flat images and watercolours.

Shape legend: B images, C channels, H x W pixels or latent cells.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.kolors.models import LATENT_SCALE, KolorsVAEDecoder, KolorsVAEEncoder
from core.tiny.build.images import drawn_images, flat_image, mixed_images, to_unit
from core.tiny.build.steps import channels_last, descend, save_weights, set_rate
from core.tiny.models import tiny_vae_decoder, tiny_vae_encoder

log = logging.getLogger(__name__)


def build_vae() -> dict[str, float]:
    """Train and save the VAE; returns the PSNR of held-out images.

    In two rounds with a whitening of the latents after each: with one round a channel stays nearly unused.
    """
    mixed, _, severity = mixed_images()
    images = torch.cat([mixed[64:][severity[64:] == 0], drawn_images(flat_image)[0][:4000]])
    held_out = to_unit(mixed[:64][severity[:64] == 0])
    encoder, decoder = channels_last(tiny_vae_encoder()), channels_last(tiny_vae_decoder())
    with torch.no_grad():
        encoder.quant_conv.weight *= 8
        encoder.conv_out.weight *= 2
    _vae_round(encoder, decoder, images, crop_steps=500, full_steps=150, rate=3e-3, noise=0.12)
    _whiten(encoder, decoder, images)
    _vae_round(encoder, decoder, images, crop_steps=250, full_steps=650, rate=2e-3, noise=0.08)
    _whiten(encoder, decoder, images)
    with torch.no_grad():
        restored = decoder(encoder(held_out)).clamp(-1, 1)
    save_weights("vae_encoder", encoder.state_dict())
    save_weights("vae_decoder", decoder.state_dict())
    return {"psnr_db": float(10 * torch.log10(4 / F.mse_loss(restored, held_out)))}


def _vae_round(
    encoder: nn.Module,
    decoder: nn.Module,
    images: Tensor,
    *,
    crop_steps: int,
    full_steps: int,
    rate: float,
    noise: float,
) -> None:
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.98), weight_decay=1e-4)
    total = crop_steps + full_steps
    for step in range(total):
        set_rate(optimizer, rate, step, total, warm_up=40)
        crop = step < crop_steps
        batch = images[torch.randint(len(images), (24 if crop else 8,))]
        if crop:
            x, y = (int(v) * 8 for v in torch.randint(0, 9, (2,)))
            batch = batch[:, :, y : y + 64, x : x + 64]
        target = to_unit(batch)
        with torch.autocast("cpu", torch.bfloat16):
            latents = encoder(target)
        latents = latents.float()
        with torch.autocast("cpu", torch.bfloat16):
            restored = decoder(latents + noise * torch.randn_like(latents))
        restored = restored.float()
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        edges = sum(F.l1_loss(a, b) for a, b in zip(_slopes(restored), _slopes(target), strict=True))
        errors = F.l1_loss(restored, target) + 0.5 * F.mse_loss(restored, target) + 0.7 * edges
        loss = errors + 0.02 * ((mean**2).mean() + ((std - 1) ** 2).mean())
        descend(optimizer, loss, parameters)
        if step % 100 == 99:
            log.info("vae step %d of %d loss %.4f", step + 1, total, loss.item())


def _slopes(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_BCHW[..., 1:] - x_BCHW[..., :-1], x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]


@torch.no_grad()
def _whiten(encoder: KolorsVAEEncoder, decoder: KolorsVAEDecoder, images: Tensor) -> None:
    """Fold a whitening of the four latent channels into quant_conv, and its inverse into post_quant_conv."""
    rows = torch.randint(len(images), (384,))
    encoded = torch.cat([encoder(to_unit(images[part])) for part in rows.split(32)])
    latents = encoded.permute(1, 0, 2, 3).flatten(1)
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    log.info("latent variances before whitening %s", [round(v, 3) for v in values.tolist()])
    assert encoder.quant_conv.bias is not None
    assert decoder.post_quant_conv.bias is not None
    whiten = torch.diag(values.rsqrt()) @ vectors.T
    encoder.quant_conv.weight[:4, :, 0, 0] = whiten @ encoder.quant_conv.weight[:4, :, 0, 0].clone()
    encoder.quant_conv.bias[:4] = whiten @ (encoder.quant_conv.bias[:4].clone() - mean / LATENT_SCALE)
    mix = decoder.post_quant_conv.weight[:, :, 0, 0].clone()
    decoder.post_quant_conv.bias += mix @ (mean / LATENT_SCALE)
    decoder.post_quant_conv.weight[:, :, 0, 0] = mix @ torch.linalg.inv(whiten)
