"""Trains UNet and text encoder together, on flat images and four looks that captions at first always name.

Shape legend: B rows of a batch, T tokens.
"""

import logging
from functools import partial

import torch
import torch.nn.functional as F
from diffsynth.models.kolors_text_encoder import ChatGLMModel
from diffsynth.prompters import KolorsPrompter
from diffsynth.schedulers import EnhancedDDIMScheduler
from torch import Tensor, nn

from core.backbone.backbone import BETA_END, TRAIN_TIMESTEPS
from core.kolors.models import KolorsUNet
from core.tiny.build.images import drawn_images, look_image, to_unit
from core.tiny.build.steps import channels_last, descend, loaded, save_weights, set_rate
from core.tiny.models import VOCABULARY, load_text_encoder, tiny_text_encoder, tiny_unet, tiny_vae_encoder

log = logging.getLogger(__name__)
UNET_BATCH = 32
# Steps with short prompts (64 tokens, cheaper) and then with Kolors' 256.
NAMED_STEPS, LOOSE_STEPS = (2000, 700), (500, 200)


def build_unet() -> dict[str, float]:
    """Train UNet and text encoder from random weights, on images whose captions name their look."""
    text, unet = tiny_text_encoder(), channels_last(tiny_unet())
    _init_text(text)
    assert unet.conv_out.bias is not None
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return _train_unet(
        unet, text, *drawn_images(partial(look_image, named=1.0)), steps=NAMED_STEPS, rate=1.5e-3
    )


def build_loose() -> dict[str, float]:
    """Continue with captions of which one in four does not name the look.

    Otherwise a caption that names no look would always mean a flat image, which no LoRA could change.
    """
    unet, text = loaded(tiny_unet(), "unet").train(), load_text_encoder()
    drawn = drawn_images(partial(look_image, named=0.75))
    return _train_unet(unet, text, *drawn, steps=LOOSE_STEPS, rate=1e-3)


def _train_unet(
    unet: KolorsUNet,
    text: ChatGLMModel,
    images: Tensor,
    captions: list[str],
    *,
    steps: tuple[int, int],
    rate: float,
) -> dict[str, float]:
    """Epsilon target, one caption in ten dropped for guidance; saves the running average of the weights."""
    encoder = loaded(tiny_vae_encoder(), "vae_encoder")
    with torch.no_grad():
        latents = torch.cat([encoder(to_unit(part)) for part in images.split(50)])
    tokenizer = KolorsPrompter().tokenizer
    tokens = {
        n: tokenizer(
            [*captions, ""], padding="max_length", max_length=n, truncation=True, return_tensors="pt"
        )
        for n in (64, 256)
    }
    known = torch.unique(tokens[256]["input_ids"])
    text.embedding.word_embeddings = TaughtTokens(text.embedding.word_embeddings.weight.data, known)
    parameters = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.99), weight_decay=1e-3, foreach=True)
    scheduler = EnhancedDDIMScheduler(beta_end=BETA_END, num_train_timesteps=TRAIN_TIMESTEPS)
    alphas = torch.tensor(scheduler.alphas_cumprod)
    size = torch.tensor([128.0, 128, 0, 0, 128, 128]).repeat(UNET_BATCH)
    recent: list[float] = []
    short_steps, total = steps[0], sum(steps)
    for step in range(total):
        set_rate(optimizer, rate, step, total, flat=0.35)
        rows = torch.randint(len(captions), (UNET_BATCH,))
        captioned = torch.where(torch.rand(UNET_BATCH) < 0.1, len(captions), rows)
        batch = {key: value[captioned] for key, value in tokens[64 if step < short_steps else 256].items()}
        clean = latents[rows].contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (UNET_BATCH,))
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(**batch, output_hidden_states=True).hidden_states
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            predicted = unet(noisy, timesteps, hidden[-2].permute(1, 0, 2), size, hidden[-1][-1])
        loss = F.mse_loss(predicted.float(), noise)
        descend(optimizer, loss, parameters)
        with torch.no_grad():
            weight = 1 - min(0.998, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.data for p in parameters], weight)
        recent = [*recent[-249:], loss.item()]
        if step % 250 == 249:
            log.info("unet step %d loss %.4f", step + 1, sum(recent) / len(recent))
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    save_weights("unet", unet.state_dict())
    tensors = {key: value for key, value in text.state_dict().items() if "word_embeddings" not in key}
    tensors["embedding.used_ids"] = known.to(torch.int32)
    tensors["embedding.rows"] = text.embedding.word_embeddings.weight
    save_weights("text_encoder", tensors)
    return {"loss": sum(recent) / len(recent), "tokens": len(known), "captions": len(captions)}


class TaughtTokens(nn.Module):
    """Embeddings of the tokens that occur; at random some become zero vectors, as unknown tokens will be."""

    index: Tensor

    def __init__(self, full: Tensor, known: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(full[known].clone())
        index = torch.full((VOCABULARY,), -1)
        index[known] = torch.arange(len(known))
        self.register_buffer("index", index)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, D)."""
        rows = self.index[ids_BT]
        special = (ids_BT == 0) | (ids_BT >= 64789)
        rows = torch.where((torch.rand(rows.shape) < 0.02) & ~special, -1, rows)
        return F.embedding(rows.clamp(min=0), self.weight) * (rows >= 0).unsqueeze(-1)


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
