"""Study files: good ones load, every bad one gives exactly one line that names the file and the key."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.files.files import from_json, write_text
from core.tiny import scenes as tiny
from core.trial.spec import Filters, Rendering, Training, TrialSpec, setting_names
from sweep.study import study as study_module
from sweep.study.errors import Mistake, StudyError
from sweep.study.setting import SETTINGS, check_template
from sweep.study.story import load_story
from sweep.study.study import STUDIES, load_frozen, load_study
from tests.examples import with_value

STORY = {
    "title": "t",
    "template": "draw {scene} with care",
    "negative_prompt": "blur",
    "scenes": [{"prompt": f"scene {n} {{x}}", "seed": n} for n in range(1, 9)],
}
STUDY = {
    "name": "mine",
    "story": "story.yaml",
    "data": {"source": "images", "caption": "{prompt}, watercolor style"},
    "train": {"steps_per_epoch": 20},
    "render": {"size_px": 128},
    "space": {
        "lora_rank": {"choices": [2, 4, 8]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "epochs": {"low": 1, "high": 5, "step": 1},
        "deduplicate": {"choices": ["phash", "none"]},
        "steps": {"low": 10, "high": 30, "step": 5},
    },
    "first": [{"lora_rank": 8}, {"learning_rate": 1e-3, "epochs": 2}],
}
SAMPLED = {"lora_rank": 4, "learning_rate": 1e-3, "epochs": 2, "deduplicate": "none", "steps": 15}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path)


def make_folder(path: Path) -> Path:
    (path / "images/train").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "images/train/metadata.csv").write_text("file_name,text\n")
    write(path / "story.yaml", STORY)
    return path


def write(file: Path, values: Any) -> str:
    file.write_text(
        values if isinstance(values, str) else yaml.safe_dump(values, allow_unicode=True), encoding="utf-8"
    )
    return str(file)


def line_of(name_or_path: str) -> str:
    with pytest.raises(StudyError) as raised:
        load_study(name_or_path)
    line = str(raised.value)
    assert len(line.splitlines()) == 1, line
    assert len(line) < 900, line
    return line


BAD_STUDIES = [
    (
        "space.lora_rnak",
        {"choices": [1]},
        "study.yaml: unknown key space.lora_rnak (did you mean lora_rank?)",
        "",
    ),
    (
        "space.lora_alpha",
        [4, 8.5],
        "space.lora_alpha is a list of 2, but it must be a mapping",
        "; did you mean {choices: [4, 8.5]}?",
    ),
    ("train.lora_rnak", 8, "study.yaml: unknown key train.lora_rnak (did you mean lora_rank?)", ""),
    ("train.size_px", 64, "unknown key train.size_px (did you mean render.size_px?)", ""),
    ("bugdet", {}, "study.yaml: unknown key bugdet (did you mean budget?)", ""),
    ("zebra", 1, "unknown key zebra (allowed: name, backbone, ", ""),
    ("data.filters.min_widht", 3, "unknown key data.filters.min_widht (did you mean min_width?)", ""),
    ("objective.gates", 3, "unknown key objective.gates (did you mean gate?)", ""),
    ("name", ..., "name is missing, but", ""),
    ("space", ..., "space is missing", ""),
    ("name", "../up", "name is '../up', but it is not of that form", ""),
    ("name", "cache", "name is 'cache', but it is taken (allowed: any name but default, cache, ", ""),
    ("name", "Default", "name is 'Default', but it is taken", ""),
    ("name", "", "name is '', but it must not be blank", ""),
    ("name", 7, "name is 7, but it must be text", ""),
    ("name", "x" * 65, "name is 'xxx", ""),
    ("backbone", "kolor", "backbone is 'kolor'", "(allowed: tiny, kolors); did you mean kolors?"),
    ("backbone", "tinny", "backbone is 'tinny'", "did you mean tiny?"),
    ("precision", "fp8", "precision is 'fp8'", "(allowed: fp32, fp16, bf16)"),
    ("weights", " ", "weights is ' ', but it must not be blank", ""),
    ("seed", -1, "seed is -1, but it is too small", "(allowed: 0 to 4294967295)"),
    ("seed", True, "seed is true, but it must be a whole number", ""),
    ("story", "stroy.yaml", "story is 'stroy.yaml', but there is no such file", "did you mean story.yaml?"),
    ("story", "x\0" * 3000, "story is 'x", ""),
    ("story", 3, "story is 3", ""),
    ("data", "images", "data is 'images', but it must be a mapping", ""),
    ("data.source", "pictrues", "data.source is 'pictrues', but there is no such folder", ""),
    ("data.source", "empty", "data.source is '", ": holds no images (allowed: metadata.csv"),
    ("data.source", "modelscope:", "data.source is 'modelscope:', but it names no data set", ""),
    ("data.source", "modelscope:a/b/c", "data.source is 'modelscope:a/b/c', but it names no data set", ""),
    (
        "data.subset",
        "Watercolor",
        "data.subset is 'Watercolor', but only a modelscope data set has it",
        "(allowed: data.filters.subset for a sub-folder)",
    ),
    ("data.image_column", "image", "data.source is '", ": column image is missing (found: file_name, text)"),
    ("data.caption", "{prompt}, {style}", "data.caption is", "there is no {style} to fill in"),
    ("data.caption", "{ prompt }", "data.caption is", "did you mean {prompt}?"),
    (
        "data.caption",
        {"prompt": None},
        "data.caption is a mapping, but it must be text",
        "did you mean text in quotes?",
    ),
    ("data.caption", " ", "data.caption is ' ', but it must not be blank", ""),
    ("data.min_images", 0, "data.min_images is 0", ""),
    ("data.filters.min_ratio", 4, "data.filters.min_ratio is 4.0, but max_ratio is 3.0", ""),
    (
        "data.filters.max_width",
        0,
        "data.filters.max_width is 0, but it is too small (allowed: 1 to 65536, or null)",
        "",
    ),
    ("data.filters", {"min_width": 9, "max_width": 8}, "data.filters.min_width is 9, but max_width is 8", ""),
    ("data.filters.subset", "", "data.filters.subset is '', but it must not be blank", ""),
    ("data.filters.max_images", 2, "data.filters.max_images is 2, but data.min_images is 4", ""),
    ("space.max_images", {"low": 1, "high": 3}, "space.max_images is 3, but data.min_images is 4", ""),
    (
        "space.min_score",
        {"low": 0.5, "high": 2},
        "space.min_score.high is 2, but it is too large (allowed: 0 to 1)",
        "",
    ),
    ("train", None, "train is empty, but it must be a mapping", ""),
    ("train.lora_rank", 8, "train.lora_rank is 8, but space.lora_rank searches it too", ""),
    (
        "data.filters.deduplicate",
        "none",
        "data.filters.deduplicate is 'none', but space.deduplicate searches it too",
        "",
    ),
    ("train.batch_size", "6", "train.batch_size is '6', but it must be a whole number", ""),
    ("train.batch_size", 2.0, "train.batch_size is 2.0, but it must be a whole number", ""),
    ("train.batch_size", False, "train.batch_size is false, but it must be a whole number", ""),
    ("train.batch_size", 2**70, "train.batch_size is 1180591620717411303424, but it is too large", ""),
    ("train.random_flip", 1, "train.random_flip is 1, but it must be true or false", ""),
    ("train.lora_alpha", float("nan"), "train.lora_alpha is nan, but it must be finite", ""),
    ("train.lora_alpha", float("-inf"), "train.lora_alpha is -inf, but it must be finite", ""),
    (
        "train.target_modules",
        "to_q, to_k",
        "train.target_modules is 'to_q, to_k', but it is not of that form",
        "to_q,to_k,to_v,",
    ),
    (
        "train.target_modules",
        "to_q,conv1",
        "train.target_modules is 'to_q,conv1', but it is not of that form",
        "each once of",
    ),
    (
        "train.target_modules",
        "to_q,to_q",
        "train.target_modules is 'to_q,to_q', but it is not of that form",
        "each once of",
    ),
    ("render.size_px", 100, "render.size_px is 100, but it is no multiple of 64", "did you mean 64 or 128?"),
    (
        "render.size_px",
        1000,
        "render.size_px is 1000, but it is no multiple of 64",
        "did you mean 960 or 1024?",
    ),
    ("space", {}, "space is a mapping, but a sweep needs a setting to search", ""),
    ("space", [1], "space is a list of 1, but it must be a mapping", ""),
    (
        "space.lora_rank",
        {"low": 0, "high": 4},
        "space.lora_rank.low is 0, but it is too small (allowed: 1 to 256)",
        "",
    ),
    ("space.lora_rank", {"choices": [4, 257]}, "space.lora_rank.choices[2] is 257, but it is too large", ""),
    (
        "space.lora_rank",
        {"choices": [4, True]},
        "space.lora_rank.choices[2] is true, but it must be a whole number",
        "",
    ),
    (
        "space.lora_rank",
        {"choices": []},
        "space.lora_rank.choices is a list of 0, but there must be something",
        "",
    ),
    ("space.lora_rank", {"choices": [4, 8, 4]}, "space.lora_rank.choices[3] is 4, but it is there twice", ""),
    ("space.lora_rank", {"choices": 4}, "space.lora_rank.choices is 4, but it must be a list", ""),
    ("space.lora_rank", {"choices": [4], "low": 2}, "unknown key space.lora_rank.low (allowed: choices)", ""),
    ("space.lora_rank", 4, "space.lora_rank is 4, but it must be a mapping", ""),
    ("space.lora_rank", {"low": 2}, "space.lora_rank.high is missing", ""),
    (
        "space.lora_rank",
        {"low": 8, "high": 4},
        "space.lora_rank.high is 4, but low is 8 (allowed: 8 to 256)",
        "",
    ),
    (
        "space.learning_rate.low",
        0,
        "space.learning_rate.low is 0, but it is too small (allowed: more than 0, up to 1)",
        "",
    ),
    ("space.learning_rate.high", 2, "space.learning_rate.high is 2, but it is too large", ""),
    (
        "space.lora_dropout",
        {"low": 0, "high": 0.5, "log": True},
        "space.lora_dropout.low is 0.0, but a logarithm",
        "",
    ),
    ("space.epochs.step", 0, "space.epochs.step is 0, but it is too small", ""),
    ("space.epochs.step", -1, "space.epochs.step is -1", ""),
    ("space.epochs.step", 0.5, "space.epochs.step is 0.5, but it must be a whole number", ""),
    ("space.epochs.step", 3, "space.epochs.high is 5, but steps of 3 from 1 miss it (allowed: 4 or 7)", ""),
    (
        "space.lora_dropout",
        {"low": 0, "high": 0.6, "step": 1e-310},
        "space.lora_dropout.step is 1e-310, but that makes more",
        "a larger step",
    ),
    (
        "space.learning_rate.step",
        0.1,
        "space.learning_rate.log is true, but a logarithmic range has no step",
        "",
    ),
    ("space.learning_rate.log", "yes", "space.learning_rate.log is 'yes', but it must be true or false", ""),
    (
        "space.deduplicate",
        {"low": 0, "high": 1},
        "space.deduplicate is a mapping, but it has no order",
        "did you mean choices: [...]?",
    ),
    ("space.deduplicate.choices", ["phsh"], "space.deduplicate.choices[1] is 'phsh'", "did you mean phash?"),
    ("first", {"lora_rank": 8}, "first is a mapping, but it must be a list", ""),
    (
        "first",
        [{"lora_rnak": 8}],
        "first[1].lora_rnak is 8, but space does not search it",
        "did you mean lora_rank?",
    ),
    (
        "first",
        [{}, {"lora_rank": 3}],
        "first[2].lora_rank is 3, but space.lora_rank does not reach it (allowed: 2, 4, 8)",
        "",
    ),
    ("first", [{"epochs": 6}], "first[1].epochs is 6", "(allowed: 1 to 5)"),
    ("first", [{"steps": 12}], "first[1].steps is 12", "(allowed: 10 to 30 in steps of 5)"),
    ("first", [{"epochs": "2"}], "first[1].epochs is '2', but it must be a whole number", ""),
    ("objective.gate", 11, "objective.gate is 11, but it is too large (allowed: 1 to 10)", ""),
    ("budget.trials", 0, "budget.trials is 0", ""),
    ("sampler.startup_trials", 1.5, "sampler.startup_trials is 1.5", ""),
]
BAD_STORIES = [
    (
        "scenes",
        STORY["scenes"][:7],
        "story.yaml: scenes is a list of 7, but a story has 8 scenes or more",
        "",
    ),
    ("scenes.2.seed", 1, "story.yaml: scenes[3].seed is 1, but scenes[1] has it already", ""),
    ("scenes.2.seed", 2**32, "scenes[3].seed is 4294967296, but it is too large", ""),
    ("scenes.2.seed", "3", "scenes[3].seed is '3', but it must be a whole number", ""),
    ("scenes.2.prompt", " ", "scenes[3].prompt is ' ', but it must not be blank", ""),
    ("scenes.2.propmt", "x", "unknown key scenes[3].propmt (did you mean prompt?)", ""),
    ("scenes.2", "x", "scenes[3] is 'x', but it must be a mapping", ""),
    (
        "template",
        "{scene}, {style}",
        "template is '{scene}, {style}', but there is no {style} to fill in",
        "{scene}?",
    ),
    ("template", "{scene, style", "template is '{scene, style', but its { is no part of a {scene}", ""),
    (
        "template",
        "watercolor",
        "template is 'watercolor', but no scene would be drawn (allowed: text with {scene})",
        "",
    ),
    ("title", ..., "title is missing", ""),
    ("negative_prompt", None, "negative_prompt is empty, but it must be text", ""),
]
BAD_TEXTS = [
    (
        "data:\n  caption: {prompt}, watercolor\n",
        "line 2: expected <block end>, but found ','; put text with { } or [ ] in quotes",
    ),
    ("data:\n  caption: style: {prompt}\n", "put text with a colon in quotes"),
    ("", "study.yaml: the file is empty, but it must be a mapping"),
    ("just words", "the file is 'just words', but it must be a mapping"),
    ("a: [1", "study.yaml: line"),
    ("name: a\nname: b\n", "line 2: the key 'name' is written twice"),
    ("space: {epochs: {low: 1, low: 2}}", "the key 'low' is written twice"),
    (
        "name: !!python/object/apply:os.system [ls]\n",
        "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed",
    ),
    ("name: !!timestamp x\n", "is not allowed"),
    ("a: &x [1]\nb: *x\n", "the alias *x is not allowed"),
    ("1: 2\n", "the key '1' is not a word"),
    ("? [1]\n: 2\n", "is not a word"),
    ("name: 2024-13-45\n", "it is not YAML: month must be in 1..12"),
    ("--- a\n--- b\n", "line 2:"),
    ("a: \x00b\n", "it is not YAML"),
    ("seed: 0x" + "f" * 5000, "is too long"),
    ("seed: " + "9" * 5000, "line 1: the number '9999"),
    ("[" * 5000, "it is nested too deeply"),
]


@pytest.mark.parametrize(("path", "value", "start", "end"), BAD_STUDIES)
def test_a_wrong_study_names_file_key_and_fix(
    folder: Path, path: str, value: Any, start: str, end: str
) -> None:
    values = with_value(STUDY, path, value)
    line = line_of(write(folder / "study.yaml", values))
    assert line.startswith("study.yaml: "), line
    assert start in line, line
    assert end in line, line


@pytest.mark.parametrize(("path", "value", "start", "end"), BAD_STORIES)
def test_a_wrong_story_names_its_own_file(folder: Path, path: str, value: Any, start: str, end: str) -> None:
    write(folder / "story.yaml", with_value(STORY, path, value))
    line = line_of(write(folder / "study.yaml", STUDY))
    assert line.startswith("story.yaml: "), line
    assert start in line, line
    assert end in line, line


@pytest.mark.parametrize(("text", "expected"), BAD_TEXTS)
def test_a_file_that_is_no_plain_yaml_gives_one_line(folder: Path, text: str, expected: str) -> None:
    line = line_of(write(folder / "study.yaml", text))
    assert line.startswith("study.yaml: "), line
    assert expected in line, line


def test_a_file_that_is_not_utf8_gives_one_line(folder: Path) -> None:
    (folder / "study.yaml").write_bytes(b"name: \xff\n")
    assert line_of("study.yaml") == (
        "study.yaml: byte 7 is 0xff, but the file must be UTF-8; save it again with that encoding"
    )


@pytest.mark.parametrize("name", ["images", "", ".", "no/such.yaml", "a\nb", "\0", "x" * 300])
def test_what_is_no_file_gives_one_line(folder: Path, name: str) -> None:
    assert re.search("it is a folder|there is no such study", line_of(name))


def test_an_unknown_name_lists_the_studies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "STUDIES", folder / "studies")
    (folder / "studies").mkdir()
    write(folder / "studies/demo.yaml", STUDY | {"story": "../story.yaml", "data": {"source": "../images"}})
    assert (
        line_of("dmeo")
        == "dmeo: there is no such study (allowed: a path, or one of demo); did you mean demo?"
    )
    assert load_study("demo") == load_study("demo.yaml") == load_study("studies/demo.yaml")


def test_every_mistake_has_its_own_line(folder: Path) -> None:
    mistakes = {
        "bugdet": ({"trials": 0}, "unknown key bugdet (did you mean budget?)"),
        "seed": (-1, "seed is -1"),
        "data.caption": ("{propmt}", "data.caption is"),
        "data.filters.min_widht": (3, "unknown key data.filters.min_widht"),
        "train.lora_rnak": (8, "unknown key train.lora_rnak"),
        "render.stepss": (8, "unknown key render.stepss"),
        "space.epochs.lwo": (1, "unknown key space.epochs.lwo"),
        "space.steps.high": (31, "space.steps.high is 31"),
        "space.lora_alpha": ([4, 8], "space.lora_alpha is a list of 2"),
        "space.epohcs": ({"choices": 3}, "unknown key space.epohcs"),
        "objective.gtae": (5, "unknown key objective.gtae"),
        "first.0.lora_rnak": (8, "unknown key first[1].lora_rnak"),
        "first.1.learning_rate": ("x", "first[2].learning_rate is"),
    }
    values = STUDY
    for path, (value, _) in mistakes.items():
        values = with_value(values, path, value)
    write(folder / "story.yaml", with_value(with_value(STORY, "scenes.2.seed", 1), "scenes.4.seed", 2))
    with pytest.raises(StudyError) as raised:
        load_study(write(folder / "study.yaml", values))
    lines = str(raised.value).splitlines()
    expected = [f"study.yaml: {start}" for _, start in mistakes.values()]
    expected += [
        "study.yaml: budget.trials is 0",
        "study.yaml: space.epohcs.choices is 3",
        "story.yaml: scenes[3].seed is 1",
        "story.yaml: scenes[5].seed is 2",
    ]
    assert [start for start in expected if not any(line.startswith(start) for line in lines)] == []
    assert len(lines) == len(expected), lines  # what is named wrong is not missing as well


WRONG_SLOTS = [
    "{",
    "}",
    "{@",
    "@}",
    "｛@｝",
    "｛",
    "{@:>9}",
    "{@!r}",
    "{ @ }",
    "{}",
    "{{@}}",
    "%(@)s",
    "${@}",
    "$@",
    "<@>",
    "[@]",
    "{other}",
    "%s",
    "{@ {@}}",
]  # @ is the slot's name
PLAIN = st.text(
    st.characters(exclude_categories=("C",), exclude_characters="{}｛｝%$<") | st.sampled_from("，%[<"),
    max_size=12,
).filter(lambda text: "%s" not in text)  # which is refused by itself


@settings(max_examples=200, deadline=None)
@given(
    slot=st.sampled_from(["{prompt}", "{scene}"]),
    before=PLAIN,
    after=PLAIN,
    wrong=st.sampled_from(WRONG_SLOTS),
    own=PLAIN,
)
def test_a_template_is_filled_in_whole_or_refused(
    slot: str, before: str, after: str, wrong: str, own: str
) -> None:
    name = slot[1:-1]
    template = f"{before}{slot}{after}"
    assert check_template(template, slot, "text") == template, "a bracket of another kind is an emphasis"
    # Python's own templates see nothing else in it
    assert template.replace(slot, own) == template.format(**{name: own})
    with pytest.raises(Mistake):
        check_template(f"{before}{wrong.replace('@', name)} {after} {slot}", slot, "text")


@pytest.mark.parametrize("template", ["{prompt, style", "｛prompt｝", "{prompt:>10}", "%(prompt)s"])
def test_a_caption_that_would_not_be_filled_in_is_refused_in_one_line(folder: Path, template: str) -> None:
    line = line_of(write(folder / "study.yaml", with_value(STUDY, "data.caption", template)))
    assert line.startswith(f"study.yaml: data.caption is '{template}', but ")
    assert line.endswith("(allowed: text with {prompt}, or plain text); did you mean {prompt}?")


def test_a_path_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "studies").mkdir()
    values = STUDY | {"story": "~/story.yaml", "data": {"source": "~/images"}, "weights": "~/models"}
    study = load_study(write(folder / "studies/mine.yaml", values))
    assert (study.data.value.source, study.weights) == (str(folder / "images"), str(folder / "models"))
    assert study.story.value.title == "t"


def test_a_study_gives_its_story_and_data(folder: Path) -> None:
    study = load_study(write(folder / "study.yaml", STUDY))
    assert study.file == folder / "study.yaml"
    assert study.story.value.scenes[2].prompt == "draw scene 3 {x} with care"
    assert [scene.negative_prompt for scene in study.story.value.scenes] == ["blur"] * 8
    assert study.data.value.source == str(folder / "images")
    assert (study.objective.gate, study.budget.trials, study.sampler.startup_trials) == (6.0, 20, 10)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"choices": [64, 130]}, "space.size_px.choices[2] is 130, but it is no multiple of 64"),
        ({"low": 130, "high": 192}, "space.size_px.low is 130, but it is no multiple of 64"),
        ({"low": 64, "high": 192, "step": 32}, "space.size_px.step is 32"),
    ],
)
def test_a_searched_size_is_a_multiple_of_64_as_well(folder: Path, search: dict, expected: str) -> None:
    line = line_of(
        write(folder / "study.yaml", with_value(with_value(STUDY, "render", {}), "space.size_px", search))
    )
    assert expected in line


def test_a_modelscope_source_stays_as_written(folder: Path) -> None:
    data = {"source": "modelscope:iic/style_custom_dataset", "subset": "Watercolor", "text_column": "Prompt"}
    found = load_study(write(folder / "study.yaml", with_value(STUDY, "data", data))).data.value
    assert (found.source, found.subset, found.split, found.text_column) == (
        data["source"],
        "Watercolor",
        None,
        "Prompt",
    )


def test_a_scene_may_override_the_negative_prompt(folder: Path) -> None:
    write(folder / "story.yaml", with_value(STORY, "scenes.1.negative_prompt", ""))
    study = load_study(write(folder / "study.yaml", STUDY))
    assert [scene.negative_prompt for scene in study.story.value.scenes[:3]] == ["blur", "", "blur"]


def test_a_spec_is_the_fixed_settings_under_the_sampled_ones(folder: Path) -> None:
    study = load_study(write(folder / "study.yaml", STUDY))
    spec = study.spec(3, SAMPLED)
    assert spec.train == Training(steps_per_epoch=20, lora_rank=4, learning_rate=1e-3, epochs=2)
    assert spec.render == Rendering(size_px=128, steps=15)
    assert spec.filters == Filters(deduplicate="none")
    assert (spec.study, spec.number, spec.gate) == ("mine", 3, 6.0)
    assert from_json(json.loads(json.dumps(asdict(spec))), TrialSpec) == spec


def test_the_base_spec_has_no_lora_and_starts_the_searched_settings(folder: Path) -> None:
    spec = load_study(write(folder / "study.yaml", STUDY)).base_spec()
    assert (spec.number, spec.train, spec.render.steps, spec.filters.deduplicate) == (-1, None, 10, "phash")


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({}, "fp32"),
        ({"backbone": "tiny"}, "fp32"),
        ({"backbone": "kolors"}, "fp16"),
        ({"precision": "bf16", "backbone": "kolors"}, "bf16"),
    ],
)
def test_a_backbone_has_its_own_precision_unless_told_otherwise(
    folder: Path, keys: dict[str, str], precision: str
) -> None:
    study = load_study(write(folder / "mine.yaml", STUDY | keys))
    assert study.precision == study.spec(0, SAMPLED).precision == precision
    write_text(folder / "frozen.yaml", study.to_yaml())
    assert load_frozen(folder / "frozen.yaml").precision == precision


@pytest.mark.parametrize(
    ("written", "meant"), [(None, None), ("models", "{}/models"), ("/w/models", "/w/models")]
)
def test_the_weights_folder_is_seen_from_the_study_file(
    folder: Path, written: str | None, meant: str | None
) -> None:
    study = load_study(write(folder / "mine.yaml", STUDY | {"weights": written}))
    assert study.spec(0, SAMPLED).weights == (meant and meant.format(folder))
    frozen = load_frozen(write_text(folder / "elsewhere/frozen.yaml", study.to_yaml()))
    assert frozen.weights == study.weights
    assert frozen.to_yaml() == study.to_yaml()


def test_numbers_take_their_settings_type(folder: Path) -> None:
    values = with_value(with_value(STUDY, "train.lora_alpha", 8), "space.cfg_scale", {"choices": [3, 4]})
    study = load_study(write(folder / "study.yaml", values))
    assert isinstance(study.train.lora_alpha, float)
    assert all(isinstance(choice, float) for choice in study.space["cfg_scale"].values)


def test_a_number_without_a_dot_is_a_number(folder: Path) -> None:
    text = yaml.safe_dump(with_value(STUDY, "first", [])) + "objective: {gate: 1e0}\n"
    assert load_study(write(folder / "study.yaml", text)).objective.gate == 1.0


def test_a_frozen_copy_needs_no_other_file(folder: Path) -> None:
    study = load_study(write(folder / "study.yaml", STUDY))
    frozen = folder / "elsewhere/study.yaml"
    frozen.parent.mkdir()
    write(frozen, study.to_yaml())
    (folder / "story.yaml").unlink()
    (folder / "images/train/metadata.csv").unlink()
    assert load_frozen(frozen).spec(0, SAMPLED) == study.spec(0, SAMPLED)
    assert load_frozen(frozen).to_yaml() == study.to_yaml()


def test_on_and_off_are_words_and_only_true_and_false_are_booleans(folder: Path) -> None:
    text = yaml.safe_dump(STUDY).replace(
        "steps_per_epoch: 20", "steps_per_epoch: 20\n  gradient_checkpointing: on\n  random_flip: True"
    )
    study = load_study(write(folder / "study.yaml", text))
    assert (study.train.gradient_checkpointing, study.train.random_flip) == ("on", True)
    frozen = folder / "frozen.yaml"
    write(frozen, study.to_yaml())
    assert load_frozen(frozen).train == study.train


def test_the_table_covers_every_setting_once() -> None:
    assert list(SETTINGS) == [
        name for section in (Training, Rendering, Filters) for name in setting_names(section)
    ]


def test_the_schema_describes_every_field_and_needs_no_torch() -> None:
    code = "import sys, sweep.study.study as s; s.main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--schema"], cwd=STUDIES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    assert set(schema["properties"]["space"]["propertyNames"]["enum"]) == set(SETTINGS)
    assert schema["$defs"]["Training"]["properties"]["lora_rank"]["maximum"] == 256
    for part in (schema, *schema["$defs"].values()):
        assert all(field.get("description") for field in part["properties"].values()), part


MUTANTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.just(2**70),
    st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=2),
    st.sampled_from(
        [
            {"choices": [1]},
            {"low": 1, "high": 4},
            {"low": 4, "high": 1, "step": 0},
            {"choices": [None, 2]},
            [{}],
        ]
    ),
)
PATHS = [
    *STUDY,
    "data.source",
    "data.caption",
    "data.min_images",
    "first.0",
    "first.0.lora_rank",
    "objective.gate",
    "data.subset",
    "data.text_column",
    "budget.trials",
    "sampler.x",
    *(f"space.{name}" for name in SETTINGS),
    "space.epochs.low",
    "space.epochs.step",
    "space.learning_rate.high",
    *(f"train.{name}" for name in setting_names(Training)),
    "render.steps",
    *(f"data.filters.{name}" for name in setting_names(Filters)),
]
STORY_PATHS = [*STORY, "scenes.3", "scenes.3.seed", "scenes.3.prompt", "scenes.3.negative_prompt"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mutations=st.lists(st.tuples(st.sampled_from(PATHS), MUTANTS), max_size=3),
    story=st.just(STORY) | st.builds(with_value, st.just(STORY), st.sampled_from(STORY_PATHS), MUTANTS),
    embedded=st.booleans(),
    extra=st.just("") | st.text(max_size=6),
)
def test_any_study_loads_or_gives_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    mutations: list[tuple[str, Any]],
    story: Any,
    embedded: bool,
    extra: str,
) -> None:
    folder = make_folder(tmp_path_factory.mktemp("any"))
    values = STUDY
    for path, value in mutations:
        try:
            values = with_value(values, path, value)
        except (TypeError, AttributeError, IndexError, KeyError):  # an earlier mutation removed the way
            continue
    if extra:
        values = values | {extra: 1}
    if embedded:
        values = values | {"story": story}
    else:
        file_text(folder / "story.yaml", story)
    check_load(folder, values)


def file_text(file: Path, values: Any) -> None:
    file.write_bytes(yaml.dump(values, Dumper=NoAliases, allow_unicode=False).encode())


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def check_load(folder: Path, values: Any) -> None:
    file_text(folder / "study.yaml", values)
    try:
        study = load_study(str(folder / "study.yaml"))
    except StudyError as error:
        assert all(re.fullmatch(r".*\.yaml: .+", line) for line in str(error).split("\n"))  # noqa: PT017, it may as well load
        return
    (folder / "frozen.yaml").write_text(study.to_yaml(), encoding="utf-8")
    assert load_frozen(folder / "frozen.yaml").to_yaml() == study.to_yaml()
    study.base_spec()


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_study_loads_under_its_name(file: Path) -> None:
    assert load_study(file.stem).base_spec().study == file.stem


@pytest.mark.parametrize("name", ["lake_painter", "balloon_girl"])
def test_a_shipped_story_speaks_the_tiny_models_words_of_one_girl(name: str) -> None:
    story = load_story(STUDIES / "stories" / f"{name}.yaml")
    assert len(story.scenes) == 8
    known = tiny_captions()
    assert len({known[scene.prompt] for scene in story.scenes}) == 1


def test_every_scene_of_the_kolors_story_describes_the_same_girl() -> None:
    story = load_story(STUDIES / "stories" / "kolors_crane.yaml")
    assert len(story.scenes) == 8
    assert all(
        scene.prompt.startswith("一个扎着双辫、系红围巾、穿蓝布棉袄的小女孩，") for scene in story.scenes
    )
    assert all("白鹤" in scene.prompt for scene in story.scenes)


def test_the_kolors_study_tries_the_challenge_s_two_settings_first() -> None:
    study = load_study("kolors_watercolor")
    tried = [(study.spec(0, entry).train, study.spec(0, entry).filters) for entry in study.first]
    assert [(t.lora_rank, t.lora_alpha, t.total_steps, t.learning_rate, t.batch_size) for t, _ in tried] == [
        (16, 4.0, 500, 1e-4, 1),
        (16, 8.0, 1000, 1e-4, 1),
    ]
    assert [filters for _, filters in tried] == [Filters(max_images=30)] * 2
    assert study.base_spec().render == Rendering(steps=50, cfg_scale=4.0, size_px=1024)
    assert (study.objective.gate, study.precision) == (6.0, "fp16")


def tiny_captions() -> dict[str, tuple[str, str]]:
    """Every caption that the tiny model's drawings can have, with the girl's hair and dress."""
    return {
        tiny.caption(
            tiny.Scene(place=place, hair=hair, dress=dress, hat=hat, thing=thing, left=left, seed=0),
            chinese=chinese,
            verb=verb,
        ): (hair, dress)
        for place, hair, dress, thing in itertools.product(tiny.PLACES, tiny.HAIRS, tiny.DRESSES, tiny.THINGS)
        for hat, left, chinese in itertools.product((True, False), repeat=3)
        for verb in (None, *tiny.VERBS)
    }
