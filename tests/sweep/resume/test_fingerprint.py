"""What the scores of a study depend on may not change unless the user accepts it; everything else may."""

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.files.files import read_json, write_json, write_text
from core.fingerprint import read_fingerprint
from core.folders import Runs, StudyFolder
from sweep.events import Ready
from sweep.resume.fingerprint import FIELDS, Fingerprint, check_changes, fields_of, record_start
from sweep.search.optuna_study import Store
from sweep.study.errors import StudyError
from sweep.study.study import STUDIES, load_frozen, load_study
from tests import examples
from tests.examples import make_result, make_spec, with_value
from tests.prepared import prepare

STORY = {
    "title": "t",
    "template": "draw {scene}",
    "negative_prompt": "blur",
    "scenes": [{"prompt": f"scene {n}", "seed": n} for n in range(1, 9)],
}
STUDY: dict[str, Any] = {
    "name": "mine",
    "story": STORY,
    "data": {"source": "images", "caption": "{prompt}, watercolor style"},
    "train": {"steps_per_epoch": 20},
    "render": {"size_px": 128},
    "space": {
        "lora_rank": {"choices": [2, 4, 8]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "epochs": {"low": 1, "high": 5},
    },
    "first": [{"lora_rank": 8}],
    "budget": {"trials": 3},
    "sampler": {"startup_trials": 2},
}
READY = asdict(
    replace(
        examples.READY,
        weights={"unet": "a" * 64, "scorer": "b" * 64},
        scorer="tiny-aesthetic-v1",
        device="cuda:0",
        canary=[4.0, 5.0],
        versions={"torch": "2.9"},
    )
)

CANARY = {"scorer.canary[1]": 4.0, "scorer.canary[2]": 5.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def make_folder(path: Path) -> Path:
    (path / "images/train").mkdir(parents=True)
    for name in "ab":
        (path / "images/train" / f"{name}.png").write_bytes(name.encode())
    write_captions(path, "a boat", "a bench")
    return path


def write_captions(folder: Path, *captions: str) -> None:
    rows = "".join(f"{name}.png,{caption}\n" for name, caption in zip("ab", captions, strict=True))
    (folder / "images/train/metadata.csv").write_text("file_name,text\n" + rows)


def study_of(folder: Path) -> StudyFolder:
    return Runs(folder / "runs").study("mine")


def start(
    folder: Path, values: Any = STUDY, *accept: str, after_finished: int = 0, ready: Any = READY
) -> tuple[Fingerprint, list[str]]:
    """What a driver does with it: at its start, and when its worker is ready."""
    study = load_study(str(write_text(folder / "study.yaml", yaml.safe_dump(values))))
    notes: list[str] = []
    fingerprint = record_start(study, study_of(folder), fields_of(accept), after_finished, notes.append)
    if ready:
        fingerprint.record_worker(Ready(**ready))
    return fingerprint, notes


def kept(folder: Path) -> Any:
    return read_json(study_of(folder).fingerprint, dict)


def refusal(folder: Path, values: Any = STUDY, *accept: str, ready: Any = READY) -> str:
    before = study_of(folder).fingerprint.read_bytes()
    with pytest.raises(StudyError) as raised:
        start(folder, values, *accept, ready=ready)
    assert study_of(folder).fingerprint.read_bytes() == before
    return str(raised.value)


def base_story(folder: Path) -> None:
    write_json(study_of(folder).base.result, make_result(make_spec(-1, train=None), 5.5))


CHANGES = [
    (
        "story.scenes.2.prompt",
        "a dragon",
        "story",
        "story.scenes[3].prompt ('draw scene 3' -> 'draw a dragon')",
    ),
    ("story.scenes.7.seed", 99, "story", "story.scenes[8].seed (8 -> 99)"),
    ("story.scenes.0.negative_prompt", "", "story", "story.scenes[1].negative_prompt ('blur' -> '')"),
    (
        "story.template",
        "paint {scene}",
        "story",
        "story.scenes[1].prompt ('draw scene 1' -> 'paint scene 1') and 7 more",
    ),
    ("data.caption", "{prompt}", "data", "data.caption ('{prompt}, watercolor style' -> '{prompt}')"),
    ("data.filters.max_images", 5, "data", "data.filters.max_images (empty -> 5)"),
    ("train.batch_size", 2, "train", "train.batch_size (1 -> 2)"),
    ("render.steps", 30, "render", "render.steps (50 -> 30)"),
    ("seed", 1, "seed", "seed (0 -> 1)"),
    ("objective.gate", 5, "gate", "objective.gate (6.0 -> 5.0)"),
]


@pytest.mark.parametrize(("path", "value", "field", "told"), CHANGES, ids=[change[0] for change in CHANGES])
def test_words_that_scores_stand_on_are_refused_and_may_be_accepted(folder, path, value, field, told):
    start(folder)
    now = with_value(STUDY, path, value)
    line = refusal(folder, now)
    assert line.endswith(
        f"study.yaml: changed since the study was started: {told}; scores would not compare: undo it, "
        f"give the study another name, or go on with --accept-change {field}"
    )
    fingerprint, notes = start(folder, now, field, after_finished=7)
    assert notes == [f"accepted: {told}; scores do not compare with those of trials before 7"]
    (entry,) = kept(folder)["history"]
    assert (entry["field"], entry["from_trial"]) == (field, 7)
    assert fingerprint.tags == {f"changed_{field}": f"{entry['at'][:10]}, from trial 7: {told}"}
    assert load_frozen(study_of(folder).frozen).to_yaml() == load_study(str(folder / "study.yaml")).to_yaml()
    assert start(folder, now)[1] == []  # it is the study's now
    assert field in refusal(folder)  # and the old words are a change


def test_what_a_start_would_refuse_is_known_before_it_and_nothing_is_written(folder):
    def differs(*accept: str) -> str:
        study = load_study(str(folder / "study.yaml"))
        try:
            check_changes(study, study_of(folder), accept)
        except StudyError as error:
            return str(error)
        return ""

    study = load_study(str(write_text(folder / "study.yaml", yaml.safe_dump(STUDY))))
    check_changes(study, study_of(folder))
    assert not study_of(folder).path.exists()  # it was not started yet
    start(folder)
    assert differs() == ""
    for path, value, field in [
        ("story.scenes.2.prompt", "a dragon", "story"),
        ("space.lora_rank.choices", [2, 8], ""),
    ]:
        line = refusal(folder, with_value(STUDY, path, value))
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert differs() == line
        assert differs(field) == ("" if field else line)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_changed_caption_or_image_is_refused(folder):
    start(folder)
    write_captions(folder, "a boat", "a horse")
    assert "data.pictures[2].caption ('a bench' -> 'a horse'); scores" in refusal(folder)
    write_captions(folder, "a boat", "a bench")
    start(folder)
    (folder / "images/train/a.png").write_bytes(b"another")
    assert re.search(
        r"data\.pictures\[1\]\.sha256 \([0-9a-f]{12} -> [0-9a-f]{12}\); .* --accept-change data$",
        refusal(folder),
    )
    start(folder, STUDY, "data")
    (folder / "images/train/a.png").unlink()
    assert "-> not a file)" in refusal(folder)


def test_images_in_another_folder_are_the_same_images(folder):
    start(folder)
    (folder / "images").rename(folder / "moved")
    moved = with_value(STUDY, "data.source", "moved")
    start(folder, moved)
    assert load_frozen(study_of(folder).frozen).data.source == str(folder / "moved")
    assert kept(folder)["history"] == []


WORKERS = [
    (
        {"weights": {"unet": "c" * 64, "scorer": "b" * 64}},
        "weights",
        "weights.unet (aaaaaaaaaaaa -> cccccccccccc)",
    ),
    (
        {"weights": {"unet": "a" * 64, "scorer": "c" * 64}},
        "scorer",
        "scorer.sha256 (bbbbbbbbbbbb -> cccccccccccc)",
    ),
    ({"scoring_version": 2}, "scoring_version", "scoring_version (1 -> 2)"),
    ({"device": "cpu"}, "device", "device ('cuda' -> 'cpu')"),
]


@pytest.mark.parametrize(("changed", "field", "told"), WORKERS, ids=[field for _, field, _ in WORKERS])
def test_another_model_or_scorer_is_refused_once_a_worker_has_loaded_it(folder, changed, field, told):
    start(folder)
    base_story(folder)
    assert f"{told}; scores" in refusal(folder, ready=READY | changed)
    fingerprint, _ = start(folder, STUDY, field, after_finished=4, ready=READY | changed)
    assert fingerprint.tags.keys() == {f"changed_{field}"}
    start(folder, ready=READY | changed)


def test_a_scorer_that_rates_the_same_images_otherwise_is_refused_and_may_be_accepted(folder):
    start(folder)
    base_story(folder)
    base = study_of(folder).base.read_result()
    start(folder, ready=READY | {"canary": [4.009, 4.991], "base_story": base.aesthetic})  # rounding
    assert kept(folder)["fields"]["scorer"].items() >= CANARY.items()
    other = READY | {"canary": [4.0, 5.02], "versions": base.versions}
    assert refusal(folder, ready=other) == (
        "study mine: its scorer rates the same images otherwise than before, by up to 0.02 points (neither "
        "processor nor packages changed: perhaps a driver or the threads did); scores would not compare: "
        "restore what changed, give the study another name, or go on with --accept-change scorer"
    )
    assert "by up to 0.10 points" in refusal(
        folder, ready=READY | {"base_story": [base.aesthetic[0] + 0.1, *base.aesthetic[1:]]}
    )
    fingerprint, _ = start(folder, STUDY, "scorer", after_finished=4, ready=other)
    assert "scorer.canary[2] (5.0 -> 5.02)" in fingerprint.tags["changed_scorer"]
    start(folder, ready=other)


def test_a_study_without_a_canary_gets_one_and_versions_that_changed_are_named(folder):
    start(folder)
    write_json(
        study_of(folder).base.result,
        replace(make_result(make_spec(-1, train=None), 5.5), versions={"torch": "2.9"}, processor="Old 1"),
    )
    file = kept(folder)
    for key in CANARY:
        del file["fields"]["scorer"][key]
    write_json(study_of(folder).fingerprint, file)
    fingerprint, notes = start(folder)
    assert (fingerprint.tags, notes) == ({}, [])
    assert kept(folder)["fields"]["scorer"].items() >= CANARY.items()
    newer = READY | {"canary": [4.5, 5.0], "versions": {"torch": "3.0"}}
    assert "by up to 0.50 points (processor Old 1 -> a CPU, torch 2.9 -> 3.0)" in refusal(folder, ready=newer)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"scoring_version": 2},
            "study mine: this lora-sweep scores otherwise than the one that it was started with: "
            "scoring_version (1 -> 2); scores would not compare: give the study another name, "
            "or go on with --accept-change scoring_version",
        ),
        (
            {"device": "cpu"},
            "study mine: it was started on another kind of device: device ('cuda' -> 'cpu'); "
            "scores would not compare: go on with --device cuda, give the study another name, "
            "or go on with --accept-change device",
        ),
        (
            {"weights": {"unet": "c" * 64, "scorer": "c" * 64}},
            "study mine: it was started with another scorer: scorer.sha256 (bbbbbbbbbbbb -> cccccccccccc); "
            "it was started with other weights of the base model: weights.unet (aaaaaaaaaaaa -> "
            "cccccccccccc); scores would not compare: go back to that scorer and go back to those weights, "
            "give the study another name, or go on with --accept-change scorer --accept-change weights",
        ),
        (
            {"scoring_version": 2, "device": "cpu"},
            "study mine: this lora-sweep scores otherwise than the one that it was started with: "
            "scoring_version (1 -> 2); it was started on another kind of device: device ('cuda' -> 'cpu'); "
            "scores would not compare: give the study another name, or go on with --accept-change "
            "scoring_version --accept-change device",
        ),
    ],
)
def test_what_nobody_wrote_into_the_study_is_not_called_a_change_of_its_file(folder, changed, line):
    start(folder)
    base_story(folder)
    assert refusal(folder, ready=READY | changed) == line


def test_as_long_as_nothing_was_made_another_model_is_taken_without_a_word(folder):
    start(folder)
    _, notes = start(folder, ready=READY | {"weights": {"unet": "c" * 64, "scorer": "c" * 64}})
    assert notes == []
    base_story(folder)
    assert "weights.unet (cccccccccccc -> aaaaaaaaaaaa)" in refusal(folder)


def test_all_changes_are_refused_at_once_and_accepted_together(folder):
    start(folder)
    now = with_value(with_value(STUDY, "seed", 1), "render.steps", 30)
    assert refusal(folder, now).endswith("--accept-change render --accept-change seed")
    assert refusal(folder, now, "seed").endswith(
        "started: render.steps (50 -> 30); scores would not compare: undo it, give the "
        "study another name, or go on with --accept-change render --accept-change seed"
    )
    assert start(folder, now, "seed", "render")[0].tags.keys() == {"changed_seed", "changed_render"}


def test_a_long_prompt_is_shown_from_where_it_differs(folder):
    start(folder, with_value(STUDY, "story.scenes.0.prompt", "very " * 40 + "old"))
    line = refusal(folder, with_value(STUDY, "story.scenes.0.prompt", "very " * 40 + "young"))
    assert "('...very very old' -> '...very very young')" in line


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    trials=st.integers(1, 100_000),
    startup=st.integers(1, 100),
    first=st.lists(st.sampled_from([2, 4, 8]), max_size=3),
    low=st.integers(1, 5),
    wider=st.integers(0, 50),
    title=st.text("ab", min_size=1),
)
def test_budget_sampler_first_title_and_ranges_are_free(
    tmp_path_factory, trials, startup, first, low, wider, title
):
    folder = make_folder(tmp_path_factory.mktemp("free"))
    start(folder)
    before = kept(folder)
    now = STUDY
    for path, value in {
        "budget.trials": trials,
        "sampler.startup_trials": startup,
        "first": [{"lora_rank": r} for r in first],
        "space.epochs": {"low": low, "high": low + wider},
        "story.title": title,
    }.items():
        now = with_value(now, path, value)
    fingerprint, notes = start(folder, now)
    assert (fingerprint.tags, fingerprint.since, notes) == ({}, 0, [])
    assert kept(folder) == before
    assert load_frozen(study_of(folder).frozen).budget.trials == trials


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"choices": [2, 4]}, "[2, 4, 8] -> [2, 4]"),
        ({"choices": [8, 4, 2]}, "[2, 4, 8] -> [8, 4, 2]"),
        ({"low": 2, "high": 8}, "[2, 4, 8] -> range"),
    ],
)
def test_choices_never_change(folder, search, told):
    start(folder)
    assert f"space.lora_rank changed since the study was started ({told})" in refusal(
        folder, with_value(with_value(STUDY, "first", []), "space.lora_rank", search), *FIELDS
    )
    assert "range -> log range" in refusal(folder, with_value(STUDY, "space.epochs.log", True))


def test_a_setting_may_leave_the_space_and_come_back_with_its_choices(folder):
    start(folder)
    fixed = with_value(with_value(STUDY, "space.lora_rank", ...), "first", [])
    fingerprint, notes = start(folder, with_value(fixed, "train.lora_rank", 4), after_finished=5)
    assert (fingerprint.tags.keys(), notes) == ({"changed_train"}, [])
    assert fingerprint.since == 5  # an equal set of sampled values is not an equal trial any more
    assert "train.lora_rank (4 -> 8)" in refusal(folder, with_value(fixed, "train.lora_rank", 8))
    assert "[2, 4, 8] -> [2, 4]" in refusal(folder, with_value(fixed, "space.lora_rank", {"choices": [2, 4]}))
    start(folder)


def test_only_trials_from_an_accepted_change_on_answer_a_repeat(folder):
    start(folder)
    assert start(folder, after_finished=3)[0].since == 0
    # it may turn out later that they did change
    assert start(folder, STUDY, "weights", after_finished=3)[0].since == 3
    assert start(folder, with_value(STUDY, "seed", 1), "seed", after_finished=4)[0].since == 4
    assert start(folder, with_value(STUDY, "seed", 1), after_finished=9)[0].since == 4
    write_json(study_of(folder).trial(9).result, {})  # finished, but its driver was killed before telling
    assert start(folder, STUDY, "seed", after_finished=9)[0].since == 10


def test_each_fingerprint_keeps_its_base_story_and_its_study(folder):
    """Changed twice; a trial is compared with what it was made under, and what no change touched is there
    once.
    """
    study = study_of(folder)

    def tell_base(mean: float) -> None:
        write_json(study.base.result, make_result(make_spec(-1, train=None), mean))

    def of(number: int) -> tuple[float, int, str]:
        base, frozen = study.verdict().base_of(number).result, load_frozen(study.frozen_of(number))
        return base.aesthetic_mean, frozen.seed, frozen.story.value.scenes[0].prompt

    start(folder)
    tell_base(5.0)
    seeded = with_value(STUDY, "seed", 1)
    start(folder, seeded, "seed", after_finished=2)  # the base model's story stays as it was
    assert of(0) == (5.0, 0, "draw scene 1")
    assert of(2) == (5.0, 1, "draw scene 1")
    painted = with_value(seeded, "story.template", "paint {scene}")
    start(folder, painted, "story", after_finished=5)
    assert study.base.read_result() is None
    # before any trial was made
    start(folder, with_value(painted, "story.template", "carve {scene}"), "story", after_finished=5)
    tell_base(6.0)
    assert [of(number) for number in (0, 2, 4, 5)] == [
        (5.0, 0, "draw scene 1"),
        (5.0, 1, "draw scene 1"),
        (5.0, 1, "draw scene 1"),
        (6.0, 1, "carve scene 1"),
    ]
    assert [change.from_trial for change in study.verdict().changes] == [2, 5, 5]


def test_an_older_trial_s_epoch_is_drawn_with_the_weights_of_then_or_not_at_all(folder):
    start(folder)
    base_story(folder)
    other = {"unet": "c" * 64, "scorer": "b" * 64}
    start(folder, STUDY, "weights", after_finished=4, ready=READY | {"weights": other})
    stored = read_fingerprint(study_of(folder).fingerprint)
    assert [stored.changed_weights(number, READY["weights"]) for number in (3, 4)] == ["", "unet"]
    assert [stored.changed_weights(number, other) for number in (3, 4)] == ["unet", ""]
    assert stored.changed_weights(4, other | {"scorer": "d" * 64}) == "scorer"


@pytest.mark.parametrize(
    ("path", "value", "field", "stays"),
    [
        ("story.template", "paint {scene}", "story", False),
        ("render.steps", 30, "render", False),
        ("seed", 1, "seed", True),
        ("objective.gate", 5, "gate", False),
        ("budget.trials", 9, "weights", False),
    ],
)
def test_the_base_model_tells_its_story_again_where_it_would_be_another(folder, path, value, field, stays):
    start(folder)
    base = write_json(study_of(folder).base.result, {})
    start(folder, with_value(STUDY, path, value), field)
    assert base.exists() == stays


def test_an_older_study_adopts_what_is_there_with_one_note(folder):
    start(folder)
    study_of(folder).fingerprint.unlink()
    with pytest.raises(StudyError, match=r"seed \(0 -> 1\)"):  # its frozen words are known
        start(folder, with_value(STUDY, "seed", 1))
    write_captions(folder, "a boat", "a horse")
    fingerprint, notes = start(folder, ready=READY | {"scoring_version": 7})
    assert len(notes) == 1
    assert notes[0].startswith("note: this study is older than its fingerprint")
    assert (fingerprint.tags, start(folder, ready=READY | {"scoring_version": 7})[1]) == ({}, [])


def test_another_way_of_scoring_is_refused_before_a_worker_starts_once_something_was_made(folder):
    start(folder)  # its worker scored by version 1
    study = load_study(str(folder / "study.yaml"))
    check_changes(study, study_of(folder))
    base_story(folder)
    with pytest.raises(StudyError, match=r"scoring_version \(1 -> 2\); scores would not compare"):
        check_changes(study, study_of(folder))
    check_changes(study, study_of(folder), {"scoring_version"})


def test_a_torn_fingerprint_is_one_line(folder):
    start(folder)
    study_of(folder).fingerprint.write_text("{")
    assert "fingerprint.json: it cannot be read" in refusal(folder)


def test_a_wrong_field_is_one_line():
    with pytest.raises(
        StudyError, match=r"--accept-change is 'stroy', but .*allowed: story, data, .*did you mean story\?"
    ):
        fields_of(["data", "stroy"])


def test_a_changed_space_crashes_neither_running_nor_queued_trials(folder):
    """With a real store: the sampler keeps to the new range and learns from trials beside it."""

    def opened(values: Any) -> tuple[Store, Any]:
        study = load_study(str(write_text(folder / "study.yaml", yaml.safe_dump(values))))
        return Store(
            folder / "study.db", "s", study.space, seed=0, startup_trials=2, allow=study.allowed
        ), study

    store, study = opened(STUDY)
    for _ in range(4):
        trial = store.ask()
        store._constrain(trial, -0.1)
        store._study.tell(trial, trial.params["learning_rate"])
    running = store.ask()
    store.enqueue([{"lora_rank": 8, "epochs": 5, "learning_rate": 1e-2}])
    assert store.after_finished() == 4
    changed = with_value(with_value(STUDY, "space.epochs", ...), "first", [])
    for path, value in {
        "space.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True},
        "train.epochs": 1,
        "space.batch_size": {"low": 1, "high": 2},
    }.items():
        changed = with_value(changed, path, value)
    store, study = opened(changed)
    store.finish_asks()
    (again,) = store.running()
    assert again.number == running.number
    assert running.params.items() < again.params.items()
    spec = study.spec(again.number, again.params)
    assert (spec.train.epochs, spec.train.batch_size) == (
        running.params["epochs"],
        again.params["batch_size"],
    )
    queued = store.ask()
    assert (queued.number, queued.params) == (5, {})
    assert (
        store.why_not_allowed(queued)
        == "epochs is 5, but space does not search it (allowed: batch_size, learning_rate, lora_rank)"
    )
    for _ in range(4):
        trial = store.ask()
        assert trial.params.keys() == study.space.keys()
        assert 1e-5 <= trial.params["learning_rate"] <= 1e-4
        store._constrain(trial, -0.1)
        store._study.tell(trial, trial.params["learning_rate"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory, known, write_study, cli):
    """A sweep of one trial; a caption changed: first refused, then accepted with a second trial."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(STUDIES / "data/watercolor", folder / "watercolor")
    study = write_study(folder, trials=1)
    study.write_text(study.read_text().replace(str(STUDIES / "data/watercolor"), str(folder / "watercolor")))
    words = ("run", study, "--runs", prepare(Runs(folder / "runs"), known).path, "--trials")
    started = cli(*words, 1)
    assert started.returncode == 0, started.stderr
    table = folder / "watercolor/train/metadata.csv"
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    table.write_text("\n".join([lines[0], "01.png,a horse", *lines[2:]]), encoding="utf-8-sig")
    return folder, cli(*words, 2), cli(*words, 2, "--accept-change", "data")


def runs_of(folder: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs/mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("quick").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_a_changed_caption_stops_a_sweep_with_one_line(swept):
    _, refused, _ = swept
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "data.pictures[1].caption (" in refused.stderr
    assert "-> 'a horse'); scores would not compare: " in refused.stderr
    assert refused.stderr.endswith(" or go on with --accept-change data\n")


def test_an_accepted_change_is_on_the_disk_and_in_mlflow(swept):
    folder, _, accepted = swept
    assert accepted.returncode == 0, accepted.stderr
    assert "accepted: data.pictures[1].caption" in accepted.stdout
    runs = runs_of(folder)
    assert runs.keys() == {"quick", "trial-0000", "trial-0001"}
    assert "from trial 1: data.pictures[1].caption" in runs["quick"].data.tags["changed_data"]
    assert [runs[f"trial-{number:04d}"].data.tags.get("older") for number in (0, 1)] == ["true", None]
    study = Runs(folder / "runs").study("quick")
    now = read_json(study.fingerprint, dict)
    assert now["fields"].keys() == set(FIELDS)
    assert now["fields"]["scorer"]["scorer.name"] == "tiny-aesthetic-v1"
    assert [entry["field"] for entry in now["history"]] == ["data"]
    assert {result.scoring_version for result in study.results()} == {2}
    assert read_json(study.trial(0).recipe, dict)["scoring_version"] == 2


def test_a_run_begun_under_other_words_gives_way(swept):
    """An unfinished trial starts again after an accepted change: MLflow never changes a logged param."""
    from sweep.tracking.tracking import open_tracking

    folder, _, _ = swept
    result = Runs(folder / "runs").study("quick").results()[0]
    changed = replace(result.spec, train=replace(result.spec.train, batch_size=5))
    found = []
    for spec in (result.spec, changed, changed):  # each by a driver of its own
        tracking = open_tracking(Runs(folder / "runs"), "quick")
        tracking.log_trial(spec, [])
        assert tracking.flush(60)
        tracking.close()
        found.append(runs_of(folder)["trial-0000"])
    assert [run.data.params["batch_size"] for run in found] == ["2", "5", "5"]
    before, now, again = (run.info.run_id for run in found)
    assert before != now == again
