"""The saved file, loaded by DiffSynth at its default of 1.0, gives the strength it was trained at."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsynth.models.lora import SDXLLoRAFromCivitai
from safetensors.torch import load_file

from core.backbone.backbone import Backbone
from core.lora import adapters
from core.lora.file import save_lora
from core.trial.spec import Training
from tests.core.lora.test_lora import inject_trained


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """DiffSynth 1.1.9 multiplies the matrices on "cuda", whatever there is (models/lora.py)."""
    move = torch.Tensor.to

    def redirected(tensor: torch.Tensor, *places: Any, **kwargs: Any) -> torch.Tensor:
        return move(tensor, *places, **kwargs | ({"device": "cpu"} if kwargs.get("device") == "cuda" else {}))

    monkeypatch.setattr(torch.Tensor, "to", redirected)


def test_diffsynth_applies_every_module_at_the_trained_strength(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Training(lora_rank=4, lora_alpha=10)
    pairs = inject_trained(backbone.unet, shape)
    tensors = load_file(save_lora(tmp_path / "lora.safetensors", pairs, shape, {}))
    adapters.remove(backbone.unet)
    unet = copy.deepcopy(backbone.unet)

    on_the_cpu(monkeypatch)
    loader = SDXLLoRAFromCivitai()
    prefix, layout = loader.match(unet, tensors)
    loader.load(unet, tensors, prefix, alpha=1.0, model_resource=layout)

    before, after = backbone.unet.state_dict(), unet.state_dict()
    changed = {
        name.removesuffix(".weight")
        for name, tensor in after.items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == set(pairs)
    for name, pair in pairs.items():
        delta = after[f"{name}.weight"] - before[f"{name}.weight"]
        # it multiplies in fp16
        torch.testing.assert_close(delta, 2.5 * pair.up @ pair.down, rtol=0, atol=2e-3)
