"""The weight files of the toy model, which ship with lora-sweep; imports no torch."""

from collections.abc import Collection
from pathlib import Path

from core.files.files import sha256
from core.files.weight_files import PARTS, Part, WeightFile

WEIGHTS = Path(__file__).with_name("weights")
FILES: tuple[WeightFile, ...] = (
    WeightFile("unet", "unet.safetensors"),
    WeightFile("vae", "vae_encoder.safetensors"),
    WeightFile("vae", "vae_decoder.safetensors"),
    WeightFile("text_encoder", "text_encoder.safetensors"),
    WeightFile("scorer", "scorer.safetensors"),
)


def models_folder(written: str = "") -> Path:
    """The folder beside this module, whatever the study says: `weights` is for models that are fetched."""
    return WEIGHTS


def missing_files(folder: Path, parts: Collection[Part] = PARTS) -> list[WeightFile]:
    """Files of these parts that are missing or empty."""
    return [file for file in FILES if file.part in parts and not file.find(folder)]


def fingerprints(folder: Path, parts: Collection[Part]) -> dict[str, str]:
    """Part of the backbone -> the sha256 of its file."""
    paths = sorted(folder / file.path for file in FILES if file.part in parts)
    return {path.stem: sha256(path) for path in paths}
