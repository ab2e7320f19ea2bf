"""The LoRA file that every program reads alike.

It has kohya keys on diffusers block names, the scale alpha / rank folded into `lora_up`, and `.alpha` =
rank, so that DiffSynth (which ignores alpha), diffusers, ComfyUI and sd-scripts all apply at strength 1 what
was trained.
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from core.errors import UserError
from core.files import safetensors_header
from core.files.files import write_whole
from core.lora.adapters import ADAPTER, Pair, extract, inject, remove, trained_parameters
from core.trial.spec import Training

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
KOHYA_KEY = re.compile(r"lora_unet_(\w+)_transformer_blocks_(\d+)_(attn\d)_(to_[a-z]+)(?:_0)?")


def inject_file(unet: nn.Module, path: Path) -> None:
    """Inject a saved LoRA at the strength it was trained at. Raises UserError if it does not fit."""
    pairs = load_lora(path)
    if not pairs:
        raise UserError(f"{path}: holds no LoRA with kohya's names (lora_unet_...)")
    rank = next(iter(pairs.values())).down.shape[0]
    targets = ",".join(sorted({name.rpartition(".")[2] for name in pairs}))
    inject(unet, Training(lora_rank=rank, lora_alpha=rank, target_modules=targets), seed=0)
    fresh = extract(unet)
    if _shapes(fresh) != _shapes(pairs):
        remove(unet)
        raise UserError(
            f"{path}: its {len(pairs)} modules do not fit this model's {len(fresh)} in name or shape"
        )
    parameters = trained_parameters(unet)
    with torch.no_grad():
        for name, pair in pairs.items():
            parameters[f"{name}.lora_A.{ADAPTER}.weight"].copy_(pair.down)
            parameters[f"{name}.lora_B.{ADAPTER}.weight"].copy_(pair.up)


def save_lora(path: Path, pairs: dict[str, Pair], training: Training, metadata: dict[str, str]) -> Path:
    """Write the LoRA file atomically; equal LoRAs with equal metadata give equal files, byte for byte."""
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        key = kohya_key(name)
        tensors[f"{key}.lora_down.weight"] = pair.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = (pair.up * training.scale).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(training.lora_rank))
    header, data = safetensors_header.split(save(tensors))
    content = safetensors_header.join(header, metadata, data)
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def load_lora(path: Path) -> dict[str, Pair]:
    """Read a kohya file: DiffSynth's module name -> matrices, with the file's alpha / rank folded into `up`.

    In our own files alpha / rank is 1. Raises UserError where a key names no attention block.
    """
    blocks = {name.replace(".", "_"): index for index, name in DIFFUSERS_BLOCKS.items()}
    pairs: dict[str, Pair] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  safetensors' file is no dict
            if not key.endswith(".lora_down.weight"):
                continue
            stem = key.removesuffix(".lora_down.weight")
            found = KOHYA_KEY.fullmatch(stem)
            if not found or found[1] not in blocks:
                raise UserError(f"{path}: {stem} names no attention block of this UNet")
            down, up = file.get_tensor(key), file.get_tensor(f"{stem}.lora_up.weight")
            scale = float(file.get_tensor(f"{stem}.alpha")) / down.shape[0]
            block, depth, attention, target = found.groups()
            module = f"blocks.{blocks[block]}.transformer_blocks.{depth}.{attention}.{target}"
            pairs[module] = Pair(down, up * scale)
    return pairs


def kohya_key(module: str) -> str:
    """kohya's name of a module: `blocks.7...attn1.to_out` -> `lora_unet_down_blocks_1_..._attn1_to_out_0`."""
    _, index, rest = module.split(".", 2)
    if rest.endswith("to_out"):
        rest += ".0"
    return "lora_unet_" + f"{DIFFUSERS_BLOCKS[int(index)]}.{rest}".replace(".", "_")


def metadata_of(training: Training, *, architecture: str, title: str, **entries: object) -> dict[str, str]:
    """Metadata of a LoRA file: kohya's and ModelSpec 1.0.1; the keys of `entries` get the `ss_` prefix.

    The network's alpha is the rank because the scale is folded in; the training alpha has its own entry.
    """
    return {
        "ss_v2": "False",
        "ss_base_model_version": architecture,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(training.lora_rank),
        "ss_network_alpha": str(float(training.lora_rank)),
        "ss_network_args": "{}",
        "ss_training_comment": f"trained at alpha {training.lora_alpha:g}; "
        f"its strength {training.scale:g} is folded into lora_up",
        "lora_sweep_training_alpha": f"{training.lora_alpha:g}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": f"{entries['resolution']}x{entries['resolution']}",
        **{f"ss_{key}": str(value) for key, value in entries.items()},
    }


def _shapes(pairs: dict[str, Pair]) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {name: (pair.down.shape, pair.up.shape) for name, pair in pairs.items()}
