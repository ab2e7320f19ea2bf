"""How a base model declares its weight files; each belongs to one part of the model. Imports no torch."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from core.errors import UserError

Part = Literal["unet", "text_encoder", "vae", "scorer"]
FOLDER_VARIABLE = "LORA_SWEEP_MODELS"  # folder of fetched models, unless a study names another
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "vae", "scorer")


class WeightsError(UserError):
    """A weight file is damaged or of another model, so that no trial can run."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file: `path` under the models folder, `file` in the repository `model` on ModelScope.

    `model` and `file` are empty for a file that is shipped. `size_bytes` is an estimate from the number of
    parameters (None: a few kB); a download announces the true size. `instead` is another name in the same
    folder that is accepted too (pickled weights instead of safetensors).
    """

    part: Part
    path: str
    model: str = ""
    file: str = ""
    size_bytes: int | None = None
    instead: str | None = None

    @property
    def variants(self) -> tuple["WeightFile", ...]:
        """This file, then the same under the name `instead`, if there is one."""
        if self.instead is None:
            return (self,)
        path, file = (str(PurePosixPath(name).with_name(self.instead)) for name in (self.path, self.file))
        return self, replace(self, path=path, file=file, instead=None)

    def find(self, folder: Path) -> Path | None:
        """Where the file lies, under either name; None if it is missing or empty."""
        paths = [folder / variant.path for variant in self.variants]
        return next((path for path in paths if path.is_file() and path.stat().st_size), None)


class WeightFiles(Protocol):
    """The interface of the module `files` in a base model's folder."""

    FILES: tuple[WeightFile, ...]

    def models_folder(self, written: str = "") -> Path:
        """Where the files are looked for; `written` is the value of the study's key `weights`."""

    def missing_files(self, folder: Path, parts: Collection[Part] = PARTS) -> list[WeightFile]:
        """Files of these parts that are missing or incomplete."""

    def fingerprints(self, folder: Path, parts: Collection[Part]) -> dict[str, str]:
        """Part of the backbone -> digest of its weight files."""


def needed_bytes(files: Iterable[WeightFile]) -> int:
    """Estimated total size of the files, without asking a server."""
    return sum(file.size_bytes or 0 for file in files)
