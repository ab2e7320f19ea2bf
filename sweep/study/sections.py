"""Sections of a study file: data, objective, budget, sampler, storage; with the checks of data folders."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo
from typing_extensions import Doc

from core.data.caption_table import DataError
from core.data.folder import read_folder, why_no_folder
from core.trial.spec import PROMPT, REMOTE, Bounds, Data, Filters, setting_names
from sweep.study.errors import Mistake, Origin
from sweep.study.setting import Checked, check_template

HUB_SOURCE = REMOTE + r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataKeys(Data):
    """Which images are trained on, and the words they are trained with."""

    filters: Annotated[Filters, Checked(), Field(description="Which images are kept, bounds included")] = (
        Filters()
    )

    @property
    def value(self) -> Data:
        """The data set as trials use it, without the filters."""
        return Data(**{name: getattr(self, name) for name in setting_names(Data)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What counts: the mean aesthetic score of the story."""

    gate: Annotated[float, Bounds(1, 10), Doc("The mean aesthetic score that a story must reach")] = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """When the sweep ends."""

    trials: Annotated[int, Bounds(1, 100_000), Doc("How many trials in all")] = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How Optuna's TPE samples."""

    startup_trials: Annotated[
        int,
        Bounds(1, 100_000),
        Doc("Trials sampled at random before the sampler (Optuna's TPE) learns from them"),
    ] = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What is kept on the disk, and how often a training is saved; no score depends on it."""

    keep: Annotated[
        int,
        Bounds(1, 100_000),
        Doc(
            "How many of the best trials keep their LoRAs when room gets short, "
            "as every entry of `first` does; images and recipes always stay"
        ),
    ] = 5
    limit_gb: Annotated[
        float | None,
        Bounds(0, 1_000_000, above=True),
        Doc("How much the trials of this study may take on the disk; null: all that is free"),
    ] = None
    checkpoint_every_s: Annotated[
        float,
        Bounds(0, 86_400),
        Doc("The most seconds of training that a kill can cost; an epoch's end is always saved"),
    ] = 120.0


def check_source(source: str, info: ValidationInfo) -> str:
    """The source of a data set; a folder as an absolute path. Raises Mistake if there is no such folder."""
    if source.startswith(REMOTE):
        if not re.fullmatch(HUB_SOURCE, source):
            raise Mistake("it names no data set", f"{REMOTE}owner/name, or a folder")
        return source
    folder = absolute(source, info)
    if not Origin.of(info).data_may_be_gone and not os.path.isdir(folder):
        allowed = f"a folder, relative to the study file or absolute, or {REMOTE}owner/name"
        raise Mistake(why_no_folder(Path(folder)), allowed)
    return folder


def check_caption(caption: str) -> str:
    """The caption template itself. Raises Mistake for braces other than those of the prompt."""
    return check_template(caption, PROMPT, f"text with {PROMPT}, or plain text")


def check_folder(data: DataKeys, info: ValidationInfo) -> DataKeys:
    """The data section itself. Raises Mistake if its folder cannot be read, or has keys of remote data."""
    if data.is_remote:
        return data
    for key in ("subset", "split"):
        if value := getattr(data, key):
            why, instead = "only a modelscope data set has it", "data.filters.subset for a sub-folder"
            raise Mistake(why, instead, at=(key,), value=value)
    try:
        if not Origin.of(info).data_may_be_gone:
            read_folder(data.value)
    except DataError as error:
        raise Mistake(f"it cannot be read: {error}", at=("source",), value=data.source) from None
    return data


def absolute(written: str, info: ValidationInfo) -> str:
    """A path in a study file made absolute: it is relative to the study file, and `~` is the user's home."""
    return os.path.abspath(Origin.of(info).file.parent / os.path.expanduser(written))
