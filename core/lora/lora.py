"""LoRA adapters on the UNet: inject, extract, remove; and a LoRA file that every program reads alike.

The file has kohya keys on diffusers block names, the scale alpha / rank folded into `lora_up`, and `.alpha` =
rank, so that DiffSynth (which ignores alpha), diffusers, ComfyUI and sd-scripts all apply at strength 1 what
was trained.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from core.errors import UserError
from core.files import safetensors_header
from core.files.files import write_whole

# DiffSynth's position in SDXLUNet.blocks -> diffusers' name of the same attention block.
DIFFUSERS_BLOCKS = {
    7: "down_blocks.1.attentions.0",
    10: "down_blocks.1.attentions.1",
    15: "down_blocks.2.attentions.0",
    18: "down_blocks.2.attentions.1",
    21: "mid_block.attentions.0",
    25: "up_blocks.0.attentions.0",
    28: "up_blocks.0.attentions.1",
    31: "up_blocks.0.attentions.2",
    35: "up_blocks.1.attentions.0",
    38: "up_blocks.1.attentions.1",
    41: "up_blocks.1.attentions.2",
}
ADAPTER = "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraShape:
    """Size and strength of one LoRA; trained at `alpha / rank` (Hu et al. 2021, section 4.1)."""

    rank: int
    alpha: float
    dropout: float = 0.0
    target_modules: str = "to_q,to_k,to_v,to_out"

    @property
    def scale(self) -> float:
        """The factor of the matrices' product, in training and in use."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's matrices, down (rank, in) and up (out, rank); its weight changes by scale * up @ down."""

    down: Tensor
    up: Tensor


def put_on(unet: nn.Module, shape: LoraShape, seed: int) -> None:
    """Inject fresh adapters: up zero, down Kaiming-uniform as PEFT draws it, but on the CPU from `seed`."""
    assert not _layers(unet), "remove the present adapters first: PEFT would leave stale ones"
    # PEFT 0.21 annotates alpha as int but accepts any number.
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=cast(int, shape.alpha),
        lora_dropout=shape.dropout,
        target_modules=shape.target_modules.split(","),
    )
    with torch.random.fork_rng(devices=[]):  # PEFT's own draw must not change the global RNG state
        inject_adapter_in_model(config, unet, ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(unet).values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        fresh = torch.empty(down.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        down.data, up.data = fresh.to(down.device), torch.zeros_like(up, dtype=torch.float32)
        # PEFT would convert every input to fp32. Autocast in training and `in_precision` in rendering take
        # care of dtypes.
        layer.cast_input_dtype_enabled = False


def take_off(unet: nn.Module) -> None:
    """Remove every adapter; the base weights were never changed."""
    for name, layer in _layers(unet).items():
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, layer.base_layer)
    if hasattr(unet, "peft_config"):
        del unet.peft_config


@contextmanager
def in_precision(unet: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert the adapters to the base model's dtype for a while, as programs that load the file do."""
    trained = [
        (parameter, parameter.data)
        for parameter in trained_parameters(unet).values()
        if parameter.dtype != dtype
    ]
    for parameter, data in trained:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in trained:
            parameter.data = data


def trained_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' matrices by PEFT's parameter name."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def read_off(unet: nn.Module) -> dict[str, Pair]:
    """The adapters as fp32 copies on the CPU, by DiffSynth's module name."""
    return {
        name: Pair(
            layer.lora_A[ADAPTER].weight.detach().float().cpu().clone(),
            layer.lora_B[ADAPTER].weight.detach().float().cpu().clone(),
        )
        for name, layer in _layers(unet).items()
    }


def put_on_file(unet: nn.Module, path: Path) -> None:
    """Inject a saved LoRA at the strength it was trained at. Raises UserError if it does not fit."""
    pairs = load_lora(path)
    if not pairs:
        raise UserError(f"{path}: holds no LoRA with kohya's names (lora_unet_...)")
    rank = next(iter(pairs.values())).down.shape[0]
    targets = ",".join(sorted({name.rpartition(".")[2] for name in pairs}))
    put_on(unet, LoraShape(rank=rank, alpha=rank, target_modules=targets), seed=0)
    layers, fresh = _layers(unet), read_off(unet)
    if _shapes(fresh) != _shapes(pairs):
        take_off(unet)
        raise UserError(
            f"{path}: its {len(pairs)} modules do not fit this model's {len(fresh)} in name or shape"
        )
    for name, layer in layers.items():
        layer.lora_A[ADAPTER].weight.data = pairs[name].down.to(layer.lora_A[ADAPTER].weight.device)
        layer.lora_B[ADAPTER].weight.data = pairs[name].up.to(layer.lora_B[ADAPTER].weight.device)


def save_lora(path: Path, pairs: dict[str, Pair], shape: LoraShape, metadata: dict[str, str]) -> Path:
    """Write the LoRA file atomically; equal LoRAs with equal metadata give equal files, byte for byte."""
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        key = kohya_key(name)
        tensors[f"{key}.lora_down.weight"] = pair.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = (pair.up * shape.scale).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(shape.rank))
    header, data = safetensors_header.split(save(tensors))
    content = safetensors_header.join(header, metadata, data)
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def load_lora(path: Path) -> dict[str, Pair]:
    """Read a kohya file: DiffSynth's module name -> matrices, with the file's alpha / rank folded into `up`.

    In our own files alpha / rank is 1. Raises UserError where a key names no attention block.
    """
    names = _diffsynth_names()
    pairs: dict[str, Pair] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  safetensors' file is no dict
            if not key.endswith(".lora_down.weight"):
                continue
            stem = key.removesuffix(".lora_down.weight")
            block = next((prefix for prefix in names if stem.startswith(prefix)), None)
            if block is None:
                raise UserError(f"{path}: {stem} names no attention block of this UNet")
            down, up = file.get_tensor(key), file.get_tensor(f"{stem}.lora_up.weight")
            scale = float(file.get_tensor(f"{stem}.alpha")) / down.shape[0]
            pairs[names[block] + _module_path(stem.removeprefix(block))] = Pair(down, up * scale)
    return pairs


def kohya_key(module: str) -> str:
    """kohya's name of a module: `blocks.7...attn1.to_out` -> `lora_unet_down_blocks_1_..._attn1_to_out_0`."""
    _, index, rest = module.split(".", 2)
    if rest.endswith("to_out"):
        rest += ".0"
    return "lora_unet_" + f"{DIFFUSERS_BLOCKS[int(index)]}.{rest}".replace(".", "_")


def metadata_of(shape: LoraShape, *, architecture: str, title: str, **training: object) -> dict[str, str]:
    """Metadata of a LoRA file: kohya's `ss_*` and ModelSpec 1.0.1; `training` keys get the `ss_` prefix.

    The network's alpha is the rank because the scale is folded in; the training alpha has its own entry.
    """
    return {
        "ss_v2": "False",
        "ss_base_model_version": architecture,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(shape.rank),
        "ss_network_alpha": str(float(shape.rank)),
        "ss_network_args": "{}",
        "ss_training_comment": f"trained at alpha {shape.alpha:g}; "
        f"its strength {shape.scale:g} is folded into lora_up",
        "lora_sweep_training_alpha": f"{shape.alpha:g}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": f"{training['resolution']}x{training['resolution']}",
        **{f"ss_{key}": str(value) for key, value in training.items()},
    }


def _shapes(pairs: dict[str, Pair]) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {name: (pair.down.shape, pair.up.shape) for name, pair in pairs.items()}


def _layers(unet: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}


def _diffsynth_names() -> dict[str, str]:
    return {
        "lora_unet_" + name.replace(".", "_") + "_": f"blocks.{index}."
        for index, name in DIFFUSERS_BLOCKS.items()
    }


def _module_path(tail: str) -> str:
    """`transformer_blocks_0_attn1_to_out_0` -> `transformer_blocks.0.attn1.to_out`."""
    _, _, rest = tail.partition("transformer_blocks_")
    depth, attention, kind = rest.split("_", 2)
    return f"transformer_blocks.{depth}.{attention}.{kind.removesuffix('_0')}"
