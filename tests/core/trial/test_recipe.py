"""What says how a story was made is read again as it was written, by this version and by the first that had
such files.
"""

import json

import pytest

from core.files.install import ROOT
from core.trial.recipe import Recipe, recipe_backbone

# by lora-sweep 0.1.0: a trial, a study's base model, the same trial's export
WRITTEN = ROOT / "tests" / "core" / "trial" / "recipes"


@pytest.mark.parametrize("name", ["trial", "base", "export"])
def test_an_earlier_file_is_read_and_written_as_it_was(name: str) -> None:
    values = json.loads((WRITTEN / f"{name}.json").read_text(encoding="utf-8"))
    again = json.loads(json.dumps(Recipe.from_json(values).to_json()))
    assert again.pop("processor", "") == ""  # the field is younger than the files
    assert again == values
    assert list(again) == list(values)


def test_a_trial_s_file_and_its_export_s_tell_the_same() -> None:
    trial, export = (
        Recipe.from_json(json.loads((WRITTEN / f"{name}.json").read_text(encoding="utf-8")))
        for name in ("trial", "export")
    )
    assert trial.submission is None
    assert export.submission is not None
    assert {name: getattr(trial, name) for name in Recipe.__slots__ if name != "submission"} == {
        name: getattr(export, name) for name in Recipe.__slots__ if name != "submission"
    }


def test_a_trial_s_file_from_before_scoring_had_a_version_is_read() -> None:
    values = json.loads((WRITTEN / "trial.json").read_text(encoding="utf-8"))
    del values["scoring_version"]
    assert Recipe.from_json(values).scoring_version is None


@pytest.mark.parametrize("values", [{}, [], "spec", {"spec": {}}, {"backbone": "tiny"}])
def test_another_program_s_file_is_no_recipe(values: object) -> None:
    with pytest.raises(ValueError, match=r"field required|valid dictionary"):
        Recipe.from_json(values)


@pytest.mark.parametrize("name", ["trial", "base", "export"])
def test_the_base_model_is_known_of_a_file_that_lacks_all_else(name: str) -> None:
    values = json.loads((WRITTEN / f"{name}.json").read_text(encoding="utf-8"))
    if "spec" in values:
        assert recipe_backbone({"spec": {"backbone": values["spec"]["backbone"]}}) == "tiny"
    else:
        assert recipe_backbone({"backbone": values["backbone"], "new": 1}) == "tiny"
    with pytest.raises(KeyError):
        recipe_backbone({"name": "another's"})
