"""The weight files of a base model, whichever it is: a part of the model in each of them. Imports no torch."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from core.errors import UserError

Part = Literal["unet", "text_encoder", "vae", "scorer"]
FOLDER_VARIABLE = "LORA_SWEEP_MODELS"  # where models that are fetched lie, unless a study says otherwise
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "vae", "scorer")


class WeightsError(UserError):
    """A weight file is damaged or of another model: no trial can do anything about it."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file: `path` under the models folder, `file` in the repository `model` on ModelScope, both empty
    where none has it.

    `size_bytes` is an estimate from the number of parameters (None: a few kB); a download announces the true
    size. `instead` is another name in the same folder that serves as well (pickled weights where safetensors
    are hoped for).
    """

    part: Part
    path: str
    model: str = ""
    file: str = ""
    size_bytes: int | None = None
    instead: str | None = None

    @property
    def variants(self) -> tuple["WeightFile", ...]:
        """Itself, then itself under the other name that serves as well."""
        if self.instead is None:
            return (self,)
        path, file = (str(PurePosixPath(name).with_name(self.instead)) for name in (self.path, self.file))
        return self, replace(self, path=path, file=file, instead=None)

    def find(self, folder: Path) -> Path | None:
        """The file on this disk, under either name, unless missing or empty."""
        paths = [folder / variant.path for variant in self.variants]
        return next((path for path in paths if path.is_file() and path.stat().st_size), None)


class WeightFiles(Protocol):
    """What the module `files` of a base model's folder has."""

    FILES: tuple[WeightFile, ...]

    def models_folder(self, written: str = "") -> Path:
        """Where the files are looked for; `written` is the study's `weights`."""

    def missing_files(self, folder: Path, parts: Collection[Part] = PARTS) -> list[WeightFile]:
        """Files of these parts that are not whole."""

    def fingerprints(self, folder: Path, parts: Collection[Part]) -> dict[str, str]:
        """Part of the backbone -> what its weights are."""


def needed_bytes(files: Iterable[WeightFile]) -> int:
    """Their size together on disk, as estimated before a server was asked."""
    return sum(file.size_bytes or 0 for file in files)
