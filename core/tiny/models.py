"""DiffSynth's Kolors classes at toy width, and how their shipped weights are read.

Only widths, depths and group counts differ; every forward pass is DiffSynth 1.1.9's or transformers' own.
"""
from pathlib import Path

import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffsynth.models.kolors_text_encoder import ChatGLMConfig, ChatGLMModel
from diffsynth.models.sd_unet import AttentionBlock, DownSampler, PopBlock, PushBlock, ResnetBlock, Timesteps, UpSampler
from diffsynth.models.sd_vae_decoder import VAEAttentionBlock
from diffsynth.models.sdxl_unet import SDXLUNet
from diffsynth.models.sdxl_vae_decoder import SDXLVAEDecoder
from diffsynth.models.sdxl_vae_encoder import SDXLVAEEncoder
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig

WEIGHTS = Path(__file__).parent / "weights"
VOCABULARY = 65024  # ChatGLM3's padded vocabulary
TEXT_WIDTH = 64
UNET_WIDTHS = (48, 64, 64)
UNET_GROUPS = 16
HEAD_WIDTH = 16
TIME_WIDTH = 128
VAE_WIDTHS = (16, 32, 48)
VAE_GROUPS = 8
LATENT_SCALE = 0.13025  # SDXL's


class TinyUNet(SDXLUNet):
    """SDXLUNet's block sequence at widths 48/64/64 and transformer depth 1; 2.8 M parameters."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        a, b, c = UNET_WIDTHS
        self.is_kolors = True
        self.time_proj = Timesteps(64)
        self.time_embedding = _embedding(64)
        self.add_time_proj = Timesteps(16)
        self.add_time_embedding = _embedding(TEXT_WIDTH + 6 * 16)
        self.conv_in = nn.Conv2d(4, a, 3, padding=1)
        self.text_intermediate_proj = nn.Linear(TEXT_WIDTH, 64)

        def res(inner: int, outer: int) -> nn.Module:
            return ResnetBlock(inner, outer, TIME_WIDTH, groups=UNET_GROUPS)

        def attention(width: int) -> nn.Module:
            return AttentionBlock(width // HEAD_WIDTH, HEAD_WIDTH, width, 1, 64, norm_num_groups=UNET_GROUPS)

        push, pop = PushBlock, PopBlock
        self.blocks = nn.ModuleList([
            res(a, a), push(), res(a, a), push(), DownSampler(a), push(),
            res(a, b), attention(b), push(), res(b, b), attention(b), push(), DownSampler(b), push(),
            res(b, c), attention(c), push(), res(c, c), attention(c), push(),
            res(c, c), attention(c), res(c, c),
            pop(), res(c + c, c), attention(c), pop(), res(c + c, c), attention(c),
            pop(), res(c + b, c), attention(c), UpSampler(c),
            pop(), res(c + b, b), attention(b), pop(), res(b + b, b), attention(b),
            pop(), res(b + a, b), attention(b), UpSampler(b),
            pop(), res(b + a, a), pop(), res(a + a, a), pop(), res(a + a, a),
        ])
        self.conv_norm_out = nn.GroupNorm(UNET_GROUPS, a, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(a, 4, 3, padding=1)


class TinyVAEEncoder(SDXLVAEEncoder):
    """Pictures (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8)."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        a, b, c = VAE_WIDTHS
        self.scaling_factor = LATENT_SCALE
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.conv_in = nn.Conv2d(3, a, 3, padding=1)

        def down(width: int) -> nn.Module:
            return DownSampler(width, padding=0, extra_padding=True)

        self.blocks = nn.ModuleList([
            _vae_res(a, a), _vae_res(a, a), down(a), _vae_res(a, b), _vae_res(b, b), down(b),
            _vae_res(b, c), _vae_res(c, c), down(c), _vae_res(c, c), _vae_res(c, c),
            _vae_res(c, c), _vae_attention(c), _vae_res(c, c),
        ])
        self.conv_norm_out = nn.GroupNorm(VAE_GROUPS, c, eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(c, 8, 3, padding=1)


class TinyVAEDecoder(SDXLVAEDecoder):
    """Latents (B, 4, h, w) -> pictures (B, 3, 8h, 8w), about in [-1, 1]."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        a, b, c = VAE_WIDTHS
        self.scaling_factor = LATENT_SCALE
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.conv_in = nn.Conv2d(4, c, 3, padding=1)
        self.blocks = nn.ModuleList([
            _vae_res(c, c), _vae_attention(c), _vae_res(c, c),
            _vae_res(c, c), _vae_res(c, c), _vae_res(c, c), UpSampler(c),
            _vae_res(c, c), _vae_res(c, c), _vae_res(c, c), UpSampler(c),
            _vae_res(c, b), _vae_res(b, b), _vae_res(b, b), UpSampler(b),
            _vae_res(b, a), _vae_res(a, a), _vae_res(a, a),
        ])
        self.conv_norm_out = nn.GroupNorm(VAE_GROUPS, a, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(a, 3, 3, padding=1)


def tiny_text_encoder() -> ChatGLMModel:
    """Two ChatGLM layers of width 64, without the language-model head that Kolors never uses."""
    config = ChatGLMConfig(
        num_layers=2, hidden_size=TEXT_WIDTH, ffn_hidden_size=2 * TEXT_WIDTH, kv_channels=16,
        num_attention_heads=TEXT_WIDTH // 16, seq_length=256, multi_query_attention=True, multi_query_group_num=1,
        add_qkv_bias=True, use_cache=False,
        # DiffSynth 1.1.9 reads these two without defaults of its own (models/kolors_text_encoder.py).
        original_rope=True, torch_dtype=torch.float32,
    )
    model = ChatGLMModel(config, empty_init=False)
    model.output_layer = nn.Identity()
    return model


def tiny_scorer() -> AestheticsPredictorV2Linear:
    """AestheticsPredictorV2Linear on a CLIP vision tower of three layers and width 64."""
    return AestheticsPredictorV2Linear(CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, projection_dim=32, num_hidden_layers=3, num_attention_heads=4,
        image_size=128, patch_size=16,
    ))


def tiny_image_processor() -> CLIPImageProcessor:
    """CLIP's preprocessing at 128 px: bicubic resize of the short side, centre crop, CLIP's own mean and deviation."""
    return CLIPImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})


def load_weights(name: str) -> dict[str, torch.Tensor]:
    """Read shipped fp16 weights as fp32; `name` is unet, vae_encoder, vae_decoder, text_encoder or scorer."""
    tensors = load_file(WEIGHTS / f"{name}.safetensors")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_text_encoder() -> tuple[ChatGLMModel, frozenset[int]]:
    """The text encoder and the token ids it was taught; every other token is a zero vector."""
    tensors = load_weights("text_encoder")
    ids = tensors.pop("embedding.used_ids").long()
    rows = torch.zeros(VOCABULARY, TEXT_WIDTH)
    rows[ids] = tensors.pop("embedding.rows")
    tensors["embedding.word_embeddings.weight"] = rows
    model = tiny_text_encoder()
    model.load_state_dict(tensors)
    return model, frozenset(ids.tolist())


def _embedding(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, TIME_WIDTH))


def _vae_res(inner: int, outer: int) -> nn.Module:
    return ResnetBlock(inner, outer, groups=VAE_GROUPS, eps=1e-6)


def _vae_attention(width: int) -> nn.Module:
    return VAEAttentionBlock(1, width, width, 1, norm_num_groups=VAE_GROUPS, eps=1e-6)
