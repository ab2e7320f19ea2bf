"""Train the tiny backbone from nothing: `python -m core.tiny.build [--stage vae|unet|looks|scorer]`.

Seeded, CPU only, about 30 minutes on two cores. Writes core/tiny/weights/*.safetensors (fp16) and losses.json.
The VAE and the scorer see watercolour; the UNet sees flat pictures, then four looks, so that watercolour is new to it.

Shape legend: B pictures, C channels, H x W pixels or latent cells, T tokens, D text width.
"""
import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable
from multiprocessing import Pool
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffsynth.prompters import KolorsPrompter
from safetensors.torch import save_file
from torch import Tensor, nn

from core.kolors.models import LATENT_SCALE
from core.tiny import scenes
from core.tiny.models import (
    TEXT_WIDTH,
    VOCABULARY,
    WEIGHTS,
    TinyUNet,
    TinyVAEDecoder,
    TinyVAEEncoder,
    load_text_encoder,
    load_weights,
    tiny_scorer,
    tiny_text_encoder,
)

log = logging.getLogger(__name__)

BASE_PICTURES = 7000
MIXED_PICTURES = 2400
UNET_BATCH = 32
# Steps with short prompts (64 tokens, cheaper) and then with Kolors' 256; first on flat pictures, then on all looks.
FLAT_STEPS, LOOKS_STEPS = (2000, 600), (500, 450)
TRAIN_TIMESTEPS = 1100
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# The scale of the toy scorer is ours: flat 4.6, full watercolour 7.6, spoiled down to 1.
FLAT_SCORE, STYLE_GAIN, SPOILED_LOSS = 4.6, 3.0, 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=["vae", "unet", "looks", "scorer"], help="only this one (default: all, in order)")
    stage = parser.parse_args().stage
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    WEIGHTS.mkdir(exist_ok=True)
    for name, build in (("vae", build_vae), ("unet", build_unet), ("looks", build_looks), ("scorer", build_scorer)):
        if stage in (None, name):
            started = time.monotonic()
            torch.manual_seed(0)
            random.seed(0)
            _note(name, {**build(), "seconds": round(time.monotonic() - started)})


def build_vae() -> dict[str, float]:
    """Two rounds with a whitening of the latents after each: one round leaves a channel nearly dead."""
    mixed, _, severity = _mixed_pictures()
    pictures = torch.cat([mixed[64:][severity[64:] == 0], _pictures(_flat_picture)[0][:4000]])
    held_out = _to_unit(mixed[:64][severity[:64] == 0])
    encoder, decoder = _fast(TinyVAEEncoder()), _fast(TinyVAEDecoder())
    with torch.no_grad():
        encoder.quant_conv.weight *= 8
        encoder.conv_out.weight *= 2
    _vae_round(encoder, decoder, pictures, crop_steps=500, full_steps=150, rate=3e-3, noise=0.12)
    _whiten(encoder, decoder, pictures)
    _vae_round(encoder, decoder, pictures, crop_steps=250, full_steps=650, rate=2e-3, noise=0.08)
    _whiten(encoder, decoder, pictures)
    with torch.no_grad():
        restored = decoder(encoder(held_out)).clamp(-1, 1)
    _save("vae_encoder", encoder.state_dict())
    _save("vae_decoder", decoder.state_dict())
    return {"psnr_db": float(10 * torch.log10(4 / F.mse_loss(restored, held_out)))}


def build_unet() -> dict[str, float]:
    """UNet and text encoder together on flat pictures."""
    text, unet = tiny_text_encoder(), _fast(TinyUNet())
    _init_text(text)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return _train_unet(unet, text, *_pictures(_flat_picture), steps=FLAT_STEPS, rate=1.5e-3)


def build_looks() -> dict[str, float]:
    """Go on with the four looks beside flat pictures: a model that knows one look only cannot bend to another."""
    text = load_text_encoder()
    unknown = (text.embedding.word_embeddings.weight == 0).all(1, keepdim=True)
    fresh = torch.randn(VOCABULARY, TEXT_WIDTH)
    text.embedding.word_embeddings.weight.data += torch.where(unknown, fresh, 0.0)
    unet = _loaded(TinyUNet(), "unet")
    return _train_unet(unet.train(), text, *_pictures(_look_picture), steps=LOOKS_STEPS, rate=1e-3)


def _train_unet(unet: Any, text: Any, pictures: Tensor, captions: list[str], *, steps: tuple[int, int],
                rate: float) -> dict[str, float]:
    """Epsilon target, captions dropped one time in ten for CFG; saves the running average of the weights."""
    encoder = _loaded(TinyVAEEncoder(), "vae_encoder")
    with torch.no_grad():
        latents = torch.cat([encoder(_to_unit(part)) for part in pictures.split(50)])
    tokenizer = KolorsPrompter().tokenizer
    tokens = {n: tokenizer([*captions, ""], padding="max_length", max_length=n, truncation=True, return_tensors="pt")
              for n in (64, 256)}
    known = torch.unique(tokens[256]["input_ids"])
    text.embedding.word_embeddings = TaughtTokens(text.embedding.word_embeddings.weight.data, known)
    parameters = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.99), weight_decay=1e-3, foreach=True)
    alphas = _alphas_cumprod()
    size = torch.tensor([128.0, 128, 0, 0, 128, 128]).repeat(UNET_BATCH)
    recent: list[float] = []
    short_steps, total = steps[0], sum(steps)
    for step in range(total):
        _set_rate(optimizer, rate, step, total, flat=0.35)
        rows = torch.randint(len(captions), (UNET_BATCH,))
        spoken = torch.where(torch.rand(UNET_BATCH) < 0.1, len(captions), rows)
        batch = {key: value[spoken] for key, value in tokens[64 if step < short_steps else 256].items()}
        clean = latents[rows].contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (UNET_BATCH,))
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(**batch, output_hidden_states=True).hidden_states
            predicted = unet(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timesteps,
                             hidden[-2].permute(1, 0, 2), size, hidden[-1][-1])
        loss = F.mse_loss(predicted.float(), noise)
        _descend(optimizer, loss, parameters)
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.data for p in parameters], 1 - min(0.998, (step + 1) / (step + 10)))
        recent = [*recent[-249:], loss.item()]
        if step % 250 == 249:
            log.info("unet step %d loss %.4f", step + 1, sum(recent) / len(recent))
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    _save("unet", unet.state_dict())
    tensors = {key: value for key, value in text.state_dict().items() if "word_embeddings" not in key}
    _save("text_encoder", tensors | {"embedding.used_ids": known.to(torch.int32),
                                     "embedding.rows": text.embedding.word_embeddings.weight})
    return {"loss": sum(recent) / len(recent), "tokens": len(known), "captions": len(captions)}


def build_scorer() -> dict[str, float]:
    """Rate pictures 1 to 10: style lifts the score, every kind of spoiling lowers it."""
    pictures, scores = _rated_pictures()
    order = torch.randperm(len(pictures))
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
        _set_rate(optimizer, 1.2e-3, step, steps)
        rows = train[torch.randint(len(train), (48,))]
        batch = pictures[rows]
        if step % 2:
            batch = batch.flip(-1)
        loss = F.mse_loss(_differentiable_score(scorer, batch), scores[rows])
        _descend(optimizer, loss, list(scorer.parameters()))
        if step % 250 == 249:
            log.info("scorer step %d loss %.4f", step + 1, loss.item())
    with torch.no_grad():
        rated = torch.cat([_differentiable_score(scorer, pictures[part]) for part in held_out.split(50)])
    _save("scorer", scorer.state_dict())
    return {"rmse": float(F.mse_loss(rated, scores[held_out]).sqrt()),
            "correlation": float(torch.corrcoef(torch.stack([rated, scores[held_out]]))[0, 1])}


class TaughtTokens(nn.Module):
    """Embeddings of the tokens that occur; sometimes one is dropped to zero, as unknown words will be."""
    index: Tensor

    def __init__(self, full: Tensor, known: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(full[known].clone())
        index = torch.full((VOCABULARY,), -1)
        index[known] = torch.arange(len(known))
        self.register_buffer("index", index)

    def forward(self, ids_BT: Tensor) -> Tensor:
        rows = self.index[ids_BT]
        special = (ids_BT == 0) | (ids_BT >= 64789)
        rows = torch.where((torch.rand(rows.shape) < 0.02) & ~special, -1, rows)
        return self.weight[rows.clamp(min=0)] * (rows >= 0).unsqueeze(-1)


def _flat_picture(index: int) -> tuple[np.ndarray, str]:
    rng = random.Random(1000 + index)
    scene = scenes.random_scene(rng)
    return scenes.draw(scene), scenes.training_caption(scene, scenes.FLAT, rng)


def _look_picture(index: int) -> tuple[np.ndarray, str]:
    rng = random.Random(500_000 + index)
    scene, look = scenes.random_scene(rng), scenes.random_look(rng)
    return scenes.draw(scene, look), scenes.training_caption(scene, look, rng)


def _mixed_picture(index: int) -> tuple[np.ndarray, float, float]:
    rng = random.Random(900_000 + index)
    style = rng.choice([0.0, 1.0, rng.random()])
    pixels, severity = scenes.draw(scenes.random_scene(rng), scenes.watercolour(style)), 0.0
    if rng.random() < 0.4:
        pixels, severity = scenes.degrade(pixels, rng)
    return pixels, style, severity


def _pictures(make: Callable[[int], tuple[np.ndarray, str]]) -> tuple[Tensor, list[str]]:
    """Pictures (B, 3, 128, 128) uint8 and their captions."""
    with Pool(2) as pool:
        pictures, captions = zip(*pool.map(make, range(BASE_PICTURES), chunksize=50), strict=True)
    return _stack(pictures), list(captions)


def _mixed_pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (B, 3, 128, 128) uint8 with their style and the severity of their spoiling, both 0 to 1."""
    with Pool(2) as pool:
        pictures, styles, severities = zip(*pool.map(_mixed_picture, range(MIXED_PICTURES), chunksize=50), strict=True)
    return _stack(pictures), torch.tensor(styles), torch.tensor(severities)


def _stack(pictures: tuple[np.ndarray, ...]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _to_unit(pictures_u8: Tensor) -> Tensor:
    return (pictures_u8.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _vae_round(encoder: nn.Module, decoder: nn.Module, pictures: Tensor, *, crop_steps: int, full_steps: int,
               rate: float, noise: float) -> None:
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.98), weight_decay=1e-4)
    total = crop_steps + full_steps
    for step in range(total):
        _set_rate(optimizer, rate, step, total, warm_up=40)
        crop = step < crop_steps
        batch = pictures[torch.randint(len(pictures), (24 if crop else 8,))]
        if crop:
            x, y = (int(v) * 8 for v in torch.randint(0, 9, (2,)))
            batch = batch[:, :, y:y + 64, x:x + 64]
        target = _to_unit(batch)
        with torch.autocast("cpu", torch.bfloat16):
            latents = encoder(target)
        latents = latents.float()
        with torch.autocast("cpu", torch.bfloat16):
            restored = decoder(latents + noise * torch.randn_like(latents))
        restored = restored.float()
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        edges = sum(F.l1_loss(a, b) for a, b in zip(_slopes(restored), _slopes(target), strict=True))
        loss = (F.l1_loss(restored, target) + 0.5 * F.mse_loss(restored, target) + 0.7 * edges
                + 0.02 * ((mean**2).mean() + ((std - 1) ** 2).mean()))
        _descend(optimizer, loss, parameters)
        if step % 100 == 99:
            log.info("vae step %d of %d loss %.4f", step + 1, total, loss.item())


def _slopes(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_BCHW[..., 1:] - x_BCHW[..., :-1], x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]


@torch.no_grad()
def _whiten(encoder: Any, decoder: Any, pictures: Tensor) -> None:
    """Fold a whitening of the four latent channels into quant_conv, and its inverse into post_quant_conv."""
    rows = torch.randint(len(pictures), (384,))
    latents = torch.cat([encoder(_to_unit(pictures[part])) for part in rows.split(32)]).permute(1, 0, 2, 3).flatten(1)
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    log.info("latent variances before whitening %s", [round(v, 3) for v in values.tolist()])
    whiten = torch.diag(values.rsqrt()) @ vectors.T
    encoder.quant_conv.weight[:4, :, 0, 0] = whiten @ encoder.quant_conv.weight[:4, :, 0, 0].clone()
    encoder.quant_conv.bias[:4] = whiten @ (encoder.quant_conv.bias[:4].clone() - mean / LATENT_SCALE)
    mix = decoder.post_quant_conv.weight[:, :, 0, 0].clone()
    decoder.post_quant_conv.bias += mix @ (mean / LATENT_SCALE)
    decoder.post_quant_conv.weight[:, :, 0, 0] = mix @ torch.linalg.inv(whiten)


def _init_text(text: nn.Module) -> None:
    """ChatGLMModel's own `_init_weights` does nothing (transformers 4.57)."""
    for name, parameter in text.named_parameters():
        if name.endswith("layernorm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "word_embeddings" in name:
            nn.init.normal_(parameter)
        else:
            nn.init.normal_(parameter, 0, 0.7 * parameter.shape[1] ** -0.5)


@torch.no_grad()
def _rated_pictures() -> tuple[Tensor, Tensor]:
    """Drawn pictures, the same through the VAE, and others spoiled in the latent space, with their scores."""
    pictures, style, severity = _mixed_pictures()
    encoder, decoder = _loaded(TinyVAEEncoder(), "vae_encoder"), _loaded(TinyVAEDecoder(), "vae_decoder")
    drawn = FLAT_SCORE + STYLE_GAIN * style - SPOILED_LOSS * severity
    latents = torch.cat([encoder(_to_unit(part)) for part in pictures.split(40)])
    whole = (severity == 0).nonzero().flatten()
    spoiled, loss = _spoil(latents[whole])
    static = torch.randn(120, 4, 16, 16) * torch.rand(120, 1, 1, 1).mul(2).add(0.3)
    images = [pictures.float() / 255, _decode(decoder, latents), _decode(decoder, spoiled), _decode(decoder, static)]
    scores = [drawn, drawn, FLAT_SCORE + STYLE_GAIN * style[whole] - loss, torch.ones(len(static))]
    return torch.cat(images), torch.cat(scores).clamp(1, 10)


def _spoil(latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Imitate what failed training does to latents -> (latents, points lost)."""
    spoiled, lost = latents_BCHW.clone(), torch.zeros(len(latents_BCHW))
    for row, latent in enumerate(latents_BCHW):
        kind, severity = random.randrange(6), random.random()
        noise = torch.randn_like(latent)
        if kind == 0:
            spoiled[row] = latent + severity * noise
        elif kind == 1:
            spoiled[row] = torch.lerp(latent, latents_BCHW[random.randrange(len(latents_BCHW))], 0.5 * severity)
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
        lost[row] = SPOILED_LOSS * severity
    return spoiled, lost


def _decode(decoder: nn.Module, latents_BCHW: Tensor) -> Tensor:
    """-> pictures (B, 3, 128, 128) in [0, 1]."""
    return torch.cat([(decoder(part).clamp(-1, 1) + 1) / 2 for part in latents_BCHW.split(40)])


def _differentiable_score(scorer: Any, pictures_BCHW: Tensor) -> Tensor:
    """The class's own forward divides in place (aesthetics_predictor/v2.py, 0.1.2), which autograd refuses."""
    pixels = (pictures_BCHW - CLIP_MEAN) / CLIP_STD
    embedding = scorer.visual_projection(scorer.vision_model(pixel_values=pixels).pooler_output)
    return scorer.layers(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]


def _alphas_cumprod() -> Tensor:
    from diffsynth.schedulers import EnhancedDDIMScheduler
    return torch.tensor(EnhancedDDIMScheduler(beta_end=0.014, num_train_timesteps=TRAIN_TIMESTEPS).alphas_cumprod)


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, total: int, *, warm_up: int = 80,
              flat: float = 0.0) -> None:
    """Linear warm-up, a flat part, then half a cosine down to 2 %."""
    progress = max(0.0, (step / total - flat) / (1 - flat))
    rate = peak * min(1.0, (step + 1) / warm_up) * (0.49 * (1 + math.cos(math.pi * progress)) + 0.02)
    for group in optimizer.param_groups:
        group["lr"] = rate


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _fast(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last)


def _loaded(model: Any, name: str) -> Any:
    model.load_state_dict(load_weights(name))
    return _fast(model).eval()


def _save(name: str, tensors: dict[str, Tensor]) -> None:
    halves = {key: (value.half() if value.is_floating_point() else value).detach().contiguous()
              for key, value in tensors.items()}
    save_file(halves, WEIGHTS / f"{name}.safetensors")


def _note(stage: str, figures: dict[str, float]) -> None:
    path = WEIGHTS / "losses.json"
    losses = json.loads(path.read_text()) if path.exists() else {}
    losses[stage] = {key: round(value, 4) for key, value in figures.items()}
    path.write_text(json.dumps(losses, indent=2) + "\n")
    log.info("%s: %s", stage, losses[stage])


if __name__ == "__main__":
    main()
