"""A key of a study file is declared once; its checks, search and row in studies/README.md follow."""

import json

from sweep.study.story import StoryFile
from sweep.study.study import README, Study
from sweep.study.tables import with_tables
from tests.core.test_imports import python

A_NEW_SETTING = """
import json
from dataclasses import asdict, make_dataclass
from pathlib import Path
from typing import Annotated

import yaml
from typing_extensions import Doc

from core.files.files import from_json
from core.trial import spec as settings

field = ("weight_decay", Annotated[float, settings.Bounds(0, 1), Doc("Pull of the weights to 0")], 0.01)
settings.Training = make_dataclass("Training", [field], bases=(settings.Training,), frozen=True, kw_only=True)
settings.TrialSpec.__dataclass_fields__["train"].type = settings.Training | None

from sweep.study.setting import Checked
from sweep.search.optuna_study import distributions
from sweep.study.study import STUDIES, load_study
from sweep.study.errors import StudyError
from sweep.study.tables import table

def study_with(**changes):
    demo = yaml.safe_load((STUDIES / "demo.yaml").read_text(encoding="utf-8"))
    demo["story"] = str(STUDIES / demo["story"])
    demo["data"] = demo["data"] | {"source": str(STUDIES / demo["data"]["source"])}
    Path("mine.yaml").write_text(yaml.safe_dump(demo | {"first": []} | changes), encoding="utf-8")
    return load_study("mine.yaml")

try:
    study_with(train={"weight_decay": 2})
except StudyError as error:
    line = str(error)
study = study_with(space={"weight_decay": {"low": 0, "high": 0.5}})
spec = study.spec(0, {"weight_decay": 0.25})
assert from_json(json.loads(json.dumps(asdict(spec))), settings.TrialSpec) == spec
print(json.dumps({
    "line": line,
    "default": study_with().train.weight_decay,
    "search": str(distributions(study.space)["weight_decay"]),
    "params": spec.all_params()["weight_decay"],
    "row": table("train", Checked().model(settings.Training)).splitlines()[-1],
}))
"""


def test_the_tables_in_the_readme_say_what_the_code_checks() -> None:
    page = README.read_text(encoding="utf-8")
    assert with_tables(page, study=Study, story=StoryFile) == page, (
        "they are stale: run python -m sweep.study --tables"
    )


def test_a_new_setting_is_one_field(tmp_path) -> None:
    done = python(A_NEW_SETTING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "line": "mine.yaml: train.weight_decay is 2, but it is too large (allowed: 0 to 1)",
        "default": 0.01,
        "search": "FloatDistribution(high=0.5, log=False, low=0.0, step=None)",
        "params": 0.25,
        "row": "| `weight_decay` | Pull of the weights to 0 | 0 to 1 | `0.01` |",
    }
