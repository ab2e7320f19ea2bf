"""At full size our Kolors has every name, shape and setting of DiffSynth's own classes; nothing is allocated
for it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffsynth.models.attention import Attention
from diffsynth.models.kolors_text_encoder import ChatGLMConfig, ChatGLMModel
from diffsynth.models.sdxl_unet import SDXLUNet
from diffsynth.models.sdxl_vae_decoder import SDXLVAEDecoder
from diffsynth.models.sdxl_vae_encoder import SDXLVAEEncoder
from peft.tuners.lora import LoraLayer
from torch import nn

from core.kolors.models import (
    KolorsUNet,
    KolorsVAEDecoder,
    KolorsVAEEncoder,
    UNetShape,
    VAEShape,
    chatglm,
    chatglm_sizes,
)
from core.lora import adapters
from core.lora.file import kohya_key
from core.trial.spec import Training

PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "unet": (lambda: KolorsUNet(UNetShape()), lambda: SDXLUNet(is_kolors=True)),
    "vae_encoder": (lambda: KolorsVAEEncoder(VAEShape()), SDXLVAEEncoder),
    "vae_decoder": (lambda: KolorsVAEDecoder(VAEShape()), SDXLVAEDecoder),
}
CHATGLM3_6B = {
    "num_layers": 28,
    "hidden_size": 4096,
    "padded_vocab_size": 65024,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
}


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def stock_chatglm() -> ChatGLMModel:
    """As text_encoder/config.json of Kwai-Kolors/Kolors says."""
    return ChatGLMModel(
        ChatGLMConfig(
            multi_query_attention=True,
            multi_query_group_num=2,
            add_qkv_bias=True,
            seq_length=32768,
            original_rope=True,
            torch_dtype=torch.float16,
        ),
        empty_init=False,
    )


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part", PAIRS)
def test_names_and_shapes_are_diffsynth_s(part: str) -> None:
    ours, theirs = map(on_meta, PAIRS[part])
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("part", PAIRS)
def test_settings_that_leave_no_tensor_are_diffsynth_s(part: str) -> None:
    """Groups, epsilons, strides, paddings, heads and scales."""
    ours, theirs = map(on_meta, PAIRS[part])
    assert repr(ours).replace("Kolors", "SDXL", 1) == repr(theirs)
    heads = [
        [(module.num_heads, module.head_dim) for module in model.modules() if isinstance(module, Attention)]
        for model in (ours, theirs)
    ]
    assert heads[0] == heads[1]
    channels = [
        [module.num_channels for module in model.modules() if type(module).__name__ == "Timesteps"]
        for model in (ours, theirs)
    ]
    assert channels[0] == channels[1]
    scale = "scaling_factor"
    assert getattr(ours, scale, None) == getattr(theirs, scale, None)
    assert type(ours).forward is type(theirs).forward


def test_the_text_encoder_is_diffsynth_s_without_its_head() -> None:
    ours, theirs = on_meta(lambda: chatglm(torch.float16)), on_meta(stock_chatglm)
    assert shapes(ours) == {
        name: shape for name, shape in shapes(theirs).items() if name != "output_layer.weight"
    }
    del ours.output_layer, theirs.output_layer
    assert repr(ours) == repr(theirs)


def test_the_sizes_are_read_from_the_weights() -> None:
    unet, encoder, decoder = (on_meta(theirs).state_dict() for _, theirs in PAIRS.values())
    assert UNetShape.of(unet) == UNetShape()
    assert VAEShape.of(encoder, (0, 4, 7)) == VAEShape.of(decoder, (17, 13, 0)) == VAEShape()
    assert chatglm_sizes(on_meta(stock_chatglm).state_dict()) == CHATGLM3_6B


def test_kolors_takes_560_adapters() -> None:
    unet = on_meta(lambda: KolorsUNet(UNetShape()))
    adapters.inject(unet, Training(lora_rank=16, lora_alpha=4), seed=0)
    names = [name for name, module in unet.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == len({kohya_key(name) for name in names}) == 560
    assert sum(parameter.numel() for parameter in adapters.trained_parameters(unet).values()) == 23_224_320
