"""The weight files of Kolors: which there are, where they lie, which are missing; imports no torch.

The layout is that of DiffSynth's `download_models(["Kolors", "SDXL-vae-fp16-fix"])`
(diffsynth/configs/model_config.py, 1.1.9), so a folder that DiffSynth filled can be used as it is; the
tokenizer ships with diffsynth.
"""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import platformdirs

from core.files.files import at_home, read_json, sampled_sha256
from core.files.install import fetch_command
from core.files.weight_files import FOLDER_VARIABLE, PARTS, Part, WeightFile, needed_bytes

# A branch, not a commit: no commit of these repositories could be looked up when this was written. A download
# therefore records the server's commit, size and sha256 of each file beside the files; later starts check the
# files against the recorded sizes, later downloads against the recorded sha256.
REVISION = "master"
RECORD = "lora-sweep-weights.json"
DOWNLOAD = "core.kolors.download"

KOLORS = "Kwai-Kolors/Kolors"
VAE = "AI-ModelScope/sdxl-vae-fp16-fix"
SCORER_FOLDER = "aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"
SCORER = f"AI-ModelScope/{SCORER_FOLDER}"
FOLDERS = {
    KOLORS: "kolors/Kolors",
    VAE: "sdxl-vae-fp16-fix",
    SCORER: SCORER_FOLDER,
}  # under the models folder


def _file(
    part: Part, model: str, file: str, size_bytes: int | None = None, instead: str | None = None
) -> WeightFile:
    return WeightFile(part, f"{FOLDERS[model]}/{file}", model, file, size_bytes, instead)


# ChatGLM3-6B: 6.24e9 parameters in fp16, the last shard about half as large as the others.
SHARD_BYTES = (*[1_900_000_000] * 6, 1_050_000_000)
FILES: tuple[WeightFile, ...] = (
    # 2.58e9 parameters in fp32; users of the repository speak of 10 GB.
    _file("unet", KOLORS, "unet/diffusion_pytorch_model.safetensors", 10_300_000_000),
    *(
        _file("text_encoder", KOLORS, f"text_encoder/pytorch_model-{number:05d}-of-00007.bin", size_bytes)
        for number, size_bytes in enumerate(SHARD_BYTES, start=1)
    ),
    # 83.7e6 parameters in fp32
    _file("vae", VAE, "diffusion_pytorch_model.safetensors", 335_000_000),
    _file("scorer", SCORER, "config.json"),
    _file("scorer", SCORER, "preprocessor_config.json"),
    # CLIP ViT-L/14's vision half in fp32
    _file("scorer", SCORER, "model.safetensors", 1_220_000_000, instead="pytorch_model.bin"),
)


def models_folder(written: str = "") -> Path:
    """Where the weights are looked for: `written`, else LORA_SWEEP_MODELS, else the user's cache folder."""
    named = written or os.environ.get(FOLDER_VARIABLE, "")
    return at_home(Path(named)) if named else platformdirs.user_cache_path("lora-sweep") / "models"


def missing_files(folder: Path, parts: Collection[Part] = PARTS) -> list[WeightFile]:
    """Files of these parts that are missing, empty, or not of the size recorded when they were fetched."""
    record = read_record(folder)
    return [file for file in FILES if file.part in parts and not _present(file, folder, record)]


def _present(file: WeightFile, folder: Path, record: dict[str, dict[str, object]]) -> bool:
    found = file.find(folder)
    if found is None:
        return False
    known = record.get(found.relative_to(folder).as_posix())
    return known is None or known["size_bytes"] == found.stat().st_size


def describe_missing(missing: Collection[WeightFile], folder: Path) -> str:
    """A line for the user: each missing file, where it is expected, and the command that fetches it."""
    paths = [
        file.path + (" (not of the size it was fetched with)" if file.find(folder) else "")
        for file in missing
    ]
    return (
        f"Kolors' weights are not complete in {folder}: missing {', '.join(paths)}; "
        f"fetch them (about {needed_bytes(missing) / 1e9:.1f} GB) with: {fetch_command(DOWNLOAD, folder)}"
    )


def read_record(folder: Path) -> dict[str, dict[str, object]]:
    """Facts on the files that were fetched into `folder`; empty if none were.

    Path -> {model, file, revision, commit, size_bytes, sha256}.
    """
    path = folder / RECORD
    return read_json(path, dict[str, dict[str, object]]) if path.exists() else {}


def fingerprints(folder: Path, parts: Collection[Part]) -> dict[str, str]:
    """Part of the backbone -> digest of its weight files; both halves of the VAE share one file."""
    digests: dict[str, str] = {
        part: hashlib.sha256("".join(map(sampled_sha256, part_paths(folder, part))).encode()).hexdigest()
        for part in parts
    }
    if vae := digests.pop("vae", None):
        digests |= {"vae_encoder": vae, "vae_decoder": vae}
    return digests


def part_paths(folder: Path, part: Part) -> list[Path]:
    """The files of a part that are in `folder`."""
    return [path for file in FILES if file.part == part and (path := file.find(folder))]
