"""A study file: what is searched, what is fixed, what is tried first, the gate, the budget."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from core.base_models import BASE_MODELS, DEFAULT
from core.files.files import write_text
from core.files.install import ROOT
from core.folders import Runs
from core.trial.spec import PRECISIONS, Filters, Rendering, Training, TrialSpec, Value, setting_names
from sweep.study.errors import (
    Key,
    Mistake,
    Origin,
    StudyError,
    UnknownKey,
    all_checked,
    combined,
    near,
    parse,
)
from sweep.study.plain_yaml import read_yaml
from sweep.study.sections import (
    Budget,
    DataKeys,
    Objective,
    Sampler,
    Storage,
    absolute,
    check_caption,
    check_folder,
    check_source,
)
from sweep.study.setting import HOMES, MAX_SEED, SECTIONS, SETTINGS, Checked, Section, Setting, text
from sweep.study.space import Search, check_space
from sweep.study.story import StoryFile, load_story
from sweep.study.tables import with_tables

STUDIES = ROOT / "studies"
README = STUDIES / "README.md"
FOLDER_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
RUNS = Runs(Path())
TAKEN_NAMES = (
    "default",  # MLflow's own experiment
    *(path.name for path in (RUNS.cache, RUNS.tracking_db, RUNS.tracking_lock, RUNS.artifacts)),
)
OWN_PRECISIONS = ", ".join(f"`{model.precision}` for {name}" for name, model in BASE_MODELS.items())
Fixed = TypeVar("Fixed", bound=Training | Rendering | Filters)
BOUND_PAIRS = tuple(
    (low, high)
    for low in setting_names(Filters)
    if low.startswith("min_")
    if (high := low.replace("min_", "max_")) in setting_names(Filters)
)


def load_study(name_or_path: str, *, data_may_be_gone: bool = False) -> "Study":
    """Read a study from a path, or by the name of a file in studies/. Raises a StudyError with a line for
    each mistake.
    """
    file = _find_study(name_or_path)
    return parse(Study, read_yaml(file), Origin(file, data_may_be_gone))


def load_frozen(path: Path) -> "Study":
    """Read a frozen copy of a study; its data need not exist any more."""
    return parse(Study, read_yaml(path), Origin(path.absolute(), data_may_be_gone=True))


def _find_study(name: str) -> Path:
    for path in (STUDIES / f"{name}.yaml", Path(name), STUDIES / name):
        if os.path.isfile(path):
            return path.absolute()
    if os.path.isdir(name):
        raise StudyError(
            f"{name}: it is a folder, but a study is a YAML file (allowed: a path, or a name in studies/)"
        )
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    guess = near(Path(name).stem, names)
    raise StudyError(
        f"{name}: there is no such study (allowed: a path, or one of {', '.join(names)})"
        + (f"; did you mean {guess}?" if guess else "")
    )


def _read_story(written: object, info: ValidationInfo) -> object:
    """The story itself, read from its file if `written` is a path."""
    if not isinstance(written, str):
        return written
    file = Path(absolute(written, info))
    if not os.path.isfile(file):
        stories = file.parent.glob("*.yaml") if os.path.isdir(file.parent) else ()
        guess = near(file.name, [path.name for path in stories])
        raise Mistake(
            "there is no such file",
            "a story file's path, relative to the study file",
            guess and str(Path(written).with_name(guess)),
        )
    return load_story(file)


def _own_precision(read: dict[str, str]) -> str:
    """The default precision of the backbone, given the keys that were read before."""
    model = BASE_MODELS.get(read.get("backbone", ""))
    return model.precision if model else PRECISIONS[0]


class Study(Section):
    """A study: what is searched, what is fixed, what is tried first, the gate, the budget."""

    name: Annotated[
        str,
        Setting(
            str,
            "Name of the study and of its folder under `runs/`: letters, digits, `.`, `_`, `-`; at most 64",
            pattern=FOLDER_NAME,
        ),
    ]
    backbone: Annotated[str, Setting(str, "The model that gets the LoRA", choices=tuple(BASE_MODELS))] = (
        DEFAULT
    )
    precision: Annotated[
        str,
        Setting(
            str,
            "Number format in training and rendering; the LoRA itself is trained in fp32, fp16 needs a GPU; "
            f"Kolors' text encoder in fp32 takes 27 GB of GPU memory; default: {OWN_PRECISIONS}",
            choices=PRECISIONS,
        ),
    ] = Field(default_factory=_own_precision)
    weights: Annotated[
        str | None,
        text(
            "Folder of Kolors' weights in DiffSynth's layout, relative to the study file or absolute; "
            "null: `LORA_SWEEP_MODELS`, else a folder in the user's cache",
            optional=True,
        ),
        AfterValidator(lambda written, info: written and absolute(written, info)),
    ] = None
    seed: Annotated[int, Setting(int, "Seed of sampling and training", high=MAX_SEED)] = 0
    story: Annotated[StoryFile, BeforeValidator(_read_story, json_schema_input_type=str | StoryFile)] = Field(
        description="The story: a file's path, relative to the study file, or the story itself"
    )
    data: Annotated[
        DataKeys, Checked(source=check_source, caption=check_caption), AfterValidator(check_folder)
    ] = Field(description="The images")
    train: Annotated[Training, Checked()] = Field(
        Training(), description="How the LoRA is trained, where fixed"
    )
    render: Annotated[Rendering, Checked()] = Field(
        Rendering(), description="How the story is drawn, where fixed"
    )
    space: dict[str, Search] = Field(
        description="What is searched: any setting of `train`, `render` or `data.filters`, "
        "as choices or as a range",
        json_schema_extra={"minProperties": 1, "propertyNames": {"enum": list(SETTINGS)}},
    )
    first: tuple[dict[str, Any], ...] = Field(
        (),
        description="Settings to try before sampling, each entry with values from `space`; "
        "what it leaves out is sampled; an entry taken out before it ran is not run",
    )
    objective: Annotated[Objective, Checked()] = Field(Objective(), description="What counts")
    budget: Annotated[Budget, Checked()] = Field(Budget(), description="When the sweep ends")
    sampler: Annotated[Sampler, Checked()] = Field(Sampler(), description="How Optuna's TPE samples")
    storage: Annotated[Storage, Checked()] = Field(Storage(), description="What is kept on the disk")
    _file: Path

    def model_post_init(self, context: Origin, /) -> None:
        """Keep the path of the study file."""
        self._file = context.file

    @classmethod
    def mistaken_keys(cls, values: Mapping[str, object]) -> list[Mistake]:
        """A mistake for each unknown key, and for each setting that is both fixed and searched."""
        return super().mistaken_keys(values) + [
            Mistake(
                f"space.{name} searches it too",
                "fixed or searched, not both",
                at=(*home.split("."), name),
                value=_written(values, home)[name],
            )
            for home in SECTIONS
            for name in sorted(_written(values, home).keys() & _written(values, "space").keys())
        ]

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name.lower() in TAKEN_NAMES:
            raise Mistake("it is taken", f"any name but {', '.join(TAKEN_NAMES)}")
        return name

    @field_validator("space", mode="wrap")
    @classmethod
    def _check_space(cls, space: object, read: ValidatorFunctionWrapHandler) -> dict[str, Search]:
        if space == {}:
            raise Mistake("a sweep needs a setting to search", ", ".join(SETTINGS), value=space)
        return check_space(space, read) if isinstance(space, dict) else read(space)

    @field_validator("first")
    @classmethod
    def _check_first(
        cls, first: tuple[dict[str, object], ...], info: ValidationInfo
    ) -> tuple[dict[str, Value], ...]:
        space = info.data.get("space")
        values = iter(
            all_checked(
                partial(_check_value, space, name, value, i)
                for i, entry in enumerate(first)
                for name, value in entry.items()
            )
        )
        return tuple({name: next(values) for name in entry} for entry in first)

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        pairs = ((low, min(self._values(low)), high, max(self._values(high))) for low, high in BOUND_PAIRS)
        mistakes = [
            self._never(low, least, f"{high} is {most}, so no image is kept")
            for low, least, high, most in pairs
            if least > most
        ]
        if (most := max(self._values("max_images"))) < self.data.min_images:
            why = f"data.min_images is {self.data.min_images}, so every trial fails"
            mistakes.append(self._never("max_images", most, why))
        if mistakes:
            raise combined(mistakes)
        return self

    def _values(self, name: str) -> list[float]:
        """The values that a bound may have in this study; null is infinity."""
        fixed = attrgetter(f"{HOMES[name]}.{name}")(self)
        values = self.space[name].values if name in self.space else (fixed,)
        return [float("inf") if value is None else value for value in values]

    def _never(self, name: str, value: float, why: str) -> Mistake:
        home = "space" if name in self.space else HOMES[name]
        return Mistake(why, at=(*home.split("."), name), value=value)

    def with_trials(self, trials: int) -> Self:
        """The same study with a budget of `trials` trials."""
        return self.model_copy(update={"budget": Budget(trials=trials)})

    @property
    def file(self) -> Path:
        """The study file that this study was read from."""
        return self._file

    @property
    def searched_filters(self) -> dict[str, Search]:
        """The search of each filter that is not fixed."""
        return {name: search for name, search in self.space.items() if HOMES[name] == "data.filters"}

    def spec(self, number: int, sampled: Mapping[str, Value]) -> TrialSpec:
        """Trial `number`: the fixed settings, overridden by the `sampled` ones. These may include settings
        that are no longer searched.
        """
        assert sampled.keys() <= SETTINGS.keys(), sampled

        def overlay(fixed: Fixed) -> Fixed:
            own: dict[str, Any] = {key: sampled[key] for key in setting_names(type(fixed)) if key in sampled}
            return replace(fixed, **own)

        return TrialSpec(
            study=self.name,
            number=number,
            seed=self.seed,
            backbone=self.backbone,
            precision=self.precision,
            data=self.data.value,
            story=self.story.value,
            train=overlay(self.train),
            render=overlay(self.render),
            filters=overlay(self.data.filters),
            gate=self.objective.gate,
            weights=self.weights,
        )

    def allowed(self, params: Mapping[str, object]) -> dict[str, Value]:
        """Queued values in the settings' own types, checked as an entry of `first` is. Raises Mistake."""
        return {name: _check_value(self.space, name, value) for name, value in params.items()}

    def base_spec(self) -> TrialSpec:
        """The trial of the base model without a LoRA; a searched setting has its first choice or its low."""
        starts = {name: search.start for name, search in self.space.items()}
        return replace(self.spec(-1, starts), train=None)

    def to_yaml(self) -> str:
        """The study as YAML that needs no other file: it includes the story and every default, and names the
        data by an absolute path.
        """
        values = self.model_dump()
        for name in self.space:  # a searched setting may not be fixed too
            del _written(values, HOMES[name])[name]
        return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=100)


def _written(values: object, path: str) -> dict[str, object]:
    """The mapping under a path such as data.filters; empty if there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _check_value(space: dict[str, Search] | None, name: str, value: object, *at: Key) -> Value:
    """A hand-made value of a searched setting, in the setting's own type. Raises Mistake. `at` is the path to
    its mapping; `space` is None if it has mistakes itself."""
    if name not in SETTINGS and space is None:
        raise UnknownKey(name, SETTINGS, near(name, SETTINGS), at)
    if space is not None and name not in space:
        raise Mistake("space does not search it", ", ".join(space), near(name, space), (*at, name), value)
    checked: Value = SETTINGS[name].check(value, *at, name)
    if space is not None and not space[name].allows(checked):
        raise Mistake(f"space.{name} does not reach it", str(space[name]), at=(*at, name), value=checked)
    return checked


def main() -> None:
    """Print the JSON schema of study files, or update the tables in studies/README.md."""
    parser = argparse.ArgumentParser(prog="python -m sweep.study", description="The study file's format.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--schema", action="store_true", help="print its JSON schema, for editors")
    what.add_argument("--tables", action="store_true", help="write the tables of studies/README.md anew")
    if parser.parse_args().tables:
        write_text(README, with_tables(README.read_text(encoding="utf-8"), study=Study, story=StoryFile))
    else:
        print(json.dumps(Study.model_json_schema(), indent=2, ensure_ascii=False))
