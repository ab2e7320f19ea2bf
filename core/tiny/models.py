"""Kolors' networks at toy width, and how their shipped weights are read."""

import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffsynth.models.kolors_text_encoder import ChatGLMModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPImageProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from core.kolors.models import KolorsUNet, KolorsVAEDecoder, KolorsVAEEncoder, UNetShape, VAEShape, chatglm
from core.tiny.files import WEIGHTS

VOCABULARY = 65024  # ChatGLM3's padded vocabulary
TEXT_WIDTH = 64
UNET_SHAPE = UNetShape(
    widths=(48, 64, 64),
    depths=(1, 1),
    head_width=16,
    groups=16,
    time_channels=64,
    size_channels=16,
    time_width=128,
    text_width=TEXT_WIDTH,
    context_width=64,
)
VAE_SHAPE = VAEShape(widths=(16, 32, 48), groups=8)


def tiny_unet() -> KolorsUNet:
    """Kolors' UNet with 2.8 M parameters."""
    return KolorsUNet(UNET_SHAPE)


def tiny_vae_encoder() -> KolorsVAEEncoder:
    """Images (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8)."""
    return KolorsVAEEncoder(VAE_SHAPE)


def tiny_vae_decoder() -> KolorsVAEDecoder:
    """Latents (B, 4, h, w) -> images (B, 3, 8h, 8w), about in [-1, 1]."""
    return KolorsVAEDecoder(VAE_SHAPE)


def tiny_text_encoder() -> ChatGLMModel:
    """Two ChatGLM layers of width 64."""
    return chatglm(
        torch.float32,
        num_layers=2,
        hidden_size=TEXT_WIDTH,
        ffn_hidden_size=2 * TEXT_WIDTH,
        kv_channels=16,
        num_attention_heads=TEXT_WIDTH // 16,
        multi_query_group_num=1,
    )


def tiny_scorer() -> AestheticsPredictorV2Linear:
    """AestheticsPredictorV2Linear on a CLIP vision tower of three layers and width 64."""
    return AestheticsPredictorV2Linear(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            projection_dim=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=128,
            patch_size=16,
        )
    )


def tiny_image_processor() -> CLIPImageProcessor:
    """CLIP's preprocessing at 128 px: bicubic resize of the short side, centre crop, CLIP's mean and std."""
    return CLIPImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})


def load_weights(name: str) -> dict[str, torch.Tensor]:
    """Read shipped fp16 weights as fp32; `name` is unet, vae_encoder, vae_decoder, text_encoder or scorer."""
    tensors = load_file(WEIGHTS / f"{name}.safetensors")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_text_encoder() -> ChatGLMModel:
    """The text encoder with its shipped weights; tokens that it was not trained on are zero vectors."""
    tensors = load_weights("text_encoder")
    rows = torch.zeros(VOCABULARY, TEXT_WIDTH)
    rows[tensors.pop("embedding.used_ids").long()] = tensors.pop("embedding.rows")
    tensors["embedding.word_embeddings.weight"] = rows
    model = tiny_text_encoder()
    model.load_state_dict(tensors)
    return model


def known_tokens() -> frozenset[int]:
    """Ids of the tokens that the text encoder was trained on."""
    with safe_open(WEIGHTS / "text_encoder.safetensors", framework="pt") as file:
        return frozenset(file.get_tensor("embedding.used_ids").tolist())
