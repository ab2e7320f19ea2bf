"""Kolors' networks in DiffSynth 1.1.9's own classes at any width: real Kolors, the toy, tests' small ones.

Only widths, depths and group counts differ; every forward pass is DiffSynth's. At the default sizes names,
shapes and settings are those of `SDXLUNet(is_kolors=True)`, `SDXLVAEEncoder` and `SDXLVAEDecoder`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from diffsynth.models.kolors_text_encoder import ChatGLMConfig, ChatGLMModel
from diffsynth.models.sd_unet import (
    AttentionBlock,
    DownSampler,
    PopBlock,
    PushBlock,
    ResnetBlock,
    Timesteps,
    UpSampler,
)
from diffsynth.models.sd_vae_decoder import VAEAttentionBlock
from diffsynth.models.sdxl_unet import SDXLUNet
from diffsynth.models.sdxl_vae_decoder import SDXLVAEDecoder
from diffsynth.models.sdxl_vae_encoder import SDXLVAEEncoder
from torch import Tensor, nn

LATENT_SCALE = 0.13025  # SDXL's
SIZE_NUMBERS = 6  # height, width, crop top and left, target height and width
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetShape:
    """Sizes of a UNet, by default Kolors'; `depths`: transformer layers at the second and the third width."""

    widths: tuple[int, int, int] = (320, 640, 1280)
    depths: tuple[int, int] = (2, 10)
    head_width: int = 64
    groups: int = 32
    time_channels: int = 320
    size_channels: int = 256
    time_width: int = 1280
    text_width: int = 4096
    context_width: int = 2048

    @classmethod
    def of(cls, tensors: Tensors) -> Self:
        """The sizes of weights in DiffSynth's names; head width and groups do not show there: Kolors'."""
        time_width, time_channels = tensors["time_embedding.0.weight"].shape
        context_width, text_width = tensors["text_intermediate_proj.weight"].shape
        a, b, c = (tensors[f"blocks.{index}.conv2.weight"].shape[0] for index in (0, 6, 14))
        depth_b, depth_c = (_count(tensors, f"blocks.{index}.transformer_blocks.") for index in (7, 15))
        return cls(
            widths=(a, b, c),
            time_channels=time_channels,
            time_width=time_width,
            text_width=text_width,
            depths=(depth_b, depth_c),
            size_channels=(tensors["add_time_embedding.0.weight"].shape[1] - text_width) // SIZE_NUMBERS,
            context_width=context_width,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEShape:
    """Sizes of a VAE, SDXL's by default."""

    widths: tuple[int, int, int] = (128, 256, 512)
    groups: int = 32

    @classmethod
    def of(cls, tensors: Tensors, blocks: tuple[int, int, int]) -> Self:
        """The sizes of weights in DiffSynth's names; `blocks` has an index of a residual block per width."""
        a, b, c = (tensors[f"blocks.{index}.conv2.weight"].shape[0] for index in blocks)
        return cls(widths=(a, b, c))


class KolorsUNet(SDXLUNet):
    """Noisy latents (B, 4, H/8, W/8), timesteps, text embeddings and sizes -> predicted noise."""

    def __init__(self, shape: UNetShape) -> None:
        nn.Module.__init__(self)
        a, _, c = shape.widths
        self.is_kolors = True
        self.time_proj = Timesteps(shape.time_channels)
        self.time_embedding = _embedding(shape.time_channels, shape.time_width)
        self.add_time_proj = Timesteps(shape.size_channels)
        added_width = shape.text_width + SIZE_NUMBERS * shape.size_channels
        self.add_time_embedding = _embedding(added_width, shape.time_width)
        self.conv_in = nn.Conv2d(4, a, 3, padding=1)
        self.text_intermediate_proj = nn.Linear(shape.text_width, shape.context_width)

        res = partial(ResnetBlock, temb_channels=shape.time_width, groups=shape.groups)
        block = partial(AttentionBlock, cross_attention_dim=shape.context_width, norm_num_groups=shape.groups)

        def attention(level: int) -> list[nn.Module]:
            if level == 0:
                return []
            width, head = shape.widths[level], shape.head_width
            return [block(width // head, head, width, shape.depths[level - 1])]

        blocks: list[nn.Module] = []
        # Widths: of the last output, and of those that forward pushes for the way up, conv_in's first.
        width, pushed = a, [a]
        for level, outer in enumerate(shape.widths):
            for _ in range(2):
                blocks += [res(width, outer), *attention(level), PushBlock()]
                width = outer
                pushed.append(width)
            if level < 2:
                blocks += [DownSampler(width), PushBlock()]
                pushed.append(width)
        blocks += [res(c, c), *attention(2), res(c, c)]
        for level, outer in reversed(list(enumerate(shape.widths))):
            for _ in range(3):
                blocks += [PopBlock(), res(width + pushed.pop(), outer), *attention(level)]
                width = outer
            if level > 0:
                blocks.append(UpSampler(width))
        self.blocks = nn.ModuleList(blocks)
        self.conv_norm_out = nn.GroupNorm(shape.groups, a, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(a, 4, 3, padding=1)


class KolorsVAEEncoder(SDXLVAEEncoder):
    """Images (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8)."""

    def __init__(self, shape: VAEShape) -> None:
        nn.Module.__init__(self)
        a, b, c = shape.widths
        self.scaling_factor = LATENT_SCALE
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.conv_in = nn.Conv2d(3, a, 3, padding=1)

        res = partial(ResnetBlock, groups=shape.groups, eps=1e-6)
        down = partial(DownSampler, padding=0, extra_padding=True)
        blocks, width = [], a
        for outer in (a, b, c):
            blocks += [res(width, outer), res(outer, outer), down(outer)]
            width = outer
        blocks += [res(c, c), res(c, c), res(c, c), _attention(shape), res(c, c)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_norm_out = nn.GroupNorm(shape.groups, c, eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(c, 8, 3, padding=1)


class KolorsVAEDecoder(SDXLVAEDecoder):
    """Latents (B, 4, h, w) -> images (B, 3, 8h, 8w), about in [-1, 1]."""

    def __init__(self, shape: VAEShape) -> None:
        nn.Module.__init__(self)
        a, b, c = shape.widths
        self.scaling_factor = LATENT_SCALE
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.conv_in = nn.Conv2d(4, c, 3, padding=1)

        res = partial(ResnetBlock, groups=shape.groups, eps=1e-6)
        blocks, width = [res(c, c), _attention(shape), res(c, c)], c
        for outer in (c, c, b):
            blocks += [res(width, outer), res(outer, outer), res(outer, outer), UpSampler(outer)]
            width = outer
        self.blocks = nn.ModuleList([*blocks, res(b, a), res(a, a), res(a, a)])
        self.conv_norm_out = nn.GroupNorm(shape.groups, a, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(a, 3, 3, padding=1)


def _attention(shape: VAEShape) -> VAEAttentionBlock:
    width = shape.widths[-1]
    return VAEAttentionBlock(1, width, width, 1, norm_num_groups=shape.groups, eps=1e-6)


def chatglm(dtype: torch.dtype, **sizes: int) -> ChatGLMModel:
    """ChatGLM3 as Kolors uses it; by default 28 layers of width 4096. `sizes` are ChatGLMConfig's.

    The language-model head is left out: Kolors reads hidden states only, and the head would take 0.5 GB in
    fp16.
    """
    config = ChatGLMConfig(
        **{"multi_query_group_num": 2, "seq_length": 256} | sizes,
        multi_query_attention=True,
        add_qkv_bias=True,
        use_cache=False,
        # DiffSynth 1.1.9 reads these two without defaults of its own (models/kolors_text_encoder.py).
        original_rope=True,
        torch_dtype=dtype,
    )
    model = ChatGLMModel(config, empty_init=False)
    model.output_layer = nn.Identity()
    return model


def chatglm_sizes(tensors: Tensors) -> dict[str, int]:
    """Arguments for `chatglm` that fit the weights.

    The head width follows from ChatGLM3 having two groups of heads that share keys and values.
    """
    vocabulary, width = tensors["embedding.word_embeddings.weight"].shape
    attention = "encoder.layers.0.self_attention"
    projection = tensors[f"{attention}.dense.weight"].shape[1]
    head_width = (tensors[f"{attention}.query_key_value.weight"].shape[0] - projection) // 4
    return {
        "num_layers": _count(tensors, "encoder.layers."),
        "hidden_size": width,
        "padded_vocab_size": vocabulary,
        "ffn_hidden_size": tensors["encoder.layers.0.mlp.dense_4h_to_h.weight"].shape[1],
        "kv_channels": head_width,
        "num_attention_heads": projection // head_width,
    }


def _count(tensors: Tensors, prefix: str) -> int:
    """How many numbered modules there are under `prefix`."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})


def _embedding(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
