"""Before a model is loaded: whether the filters keep enough images, and notes on images and texts."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data.audit import audit
from core.data.filters import select
from core.files.cache import Cache
from core.files.install import ROOT
from core.folders import Runs
from core.trial.spec import Rendering
from sweep.commands.data import survey_data
from sweep.doctor.doctor import check_data, check_runs
from sweep.plan.outlook import NoTrialPossible, look_ahead, notes_on_study
from sweep.plan.plan import make_plan
from sweep.study.space import Choices, Range
from sweep.study.study import Study, load_study
from tests.sweep.search.test_queue import open_store

WATERCOLOR = ROOT / "studies" / "data" / "watercolor" / "train"


@pytest.fixture
def study(tmp_path, write_study) -> Study:
    return load_study(str(make_study(tmp_path, write_study)))


def make_study(folder: Path, write_study: Any, captions: tuple[str, ...] = ("a cat",) * 6) -> Path:
    """Six images of 128 px with these captions."""
    train = folder / "images"
    train.mkdir()
    for number, caption in enumerate(captions, start=1):
        shutil.copy(WATERCOLOR / f"{number:02}.png", train)
        (train / f"{number:02}.txt").write_text(caption)
    study = write_study(folder, name="mine")
    study.write_text(study.read_text().replace(str(WATERCOLOR.parent), "images"), encoding="utf-8")
    return study


def changed(study: Study, space: dict[str, Any] | None = None, **filters: Any) -> Study:
    data = replace(study.data, filters=replace(study.data.filters, **filters))
    return study.model_copy(update={"data": data, "space": study.space | (space or {})})


def refusal(study: Study, runs: Path) -> str:
    with pytest.raises(NoTrialPossible) as raised:
        look_ahead(study, Runs(runs))
    assert not runs.exists()
    return str(raised.value)


def test_a_good_study_has_nothing_to_say_and_nothing_is_written(study, tmp_path):
    outlook = look_ahead(study, Runs(tmp_path / "runs"))
    assert (outlook.images, outlook.bad, outlook.notes, outlook.unscored) == (6, {}, (), 6)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (
            {"min_width": 4096},
            "the filters keep 0 of 6 images (image_shape_filter drops 6), data.min_images is 4, so every "
            "trial",
        ),
        ({"subset": "Anime"}, "(subset drops 6)"),
        ({"min_size": 10**9}, "(image_size_filter drops 6)"),
        ({"max_ratio": 0.9}, "(image_aspect_ratio_filter drops 6)"),
    ],
)
def test_filters_that_keep_too_few_at_their_widest_are_refused(study, tmp_path, filters, words):
    assert words in refusal(changed(study, **filters), tmp_path / "runs")


def test_a_bound_that_is_searched_counts_where_it_keeps_the_most(study, tmp_path):
    narrow = {"min_width": Range(low=2000, high=4000)}
    assert "image_shape_filter drops 6" in refusal(changed(study, narrow), tmp_path / "runs")
    wide = {
        "min_width": Choices(choices=(400, 64)),
        "subset": Choices(choices=("Anime", "")),
        "max_size": Choices(choices=(9, None)),
    }
    assert look_ahead(changed(study, wide), Runs(tmp_path / "runs")).bad == {}


def test_equal_images_are_counted_once(study, tmp_path):
    for number in range(2, 7):
        shutil.copy(WATERCOLOR / "01.png", tmp_path / "images" / f"{number:02}.png")
    assert "keep 1 of 6 images (image_deduplicator drops 5)" in refusal(study, tmp_path / "runs")
    assert (
        look_ahead(
            changed(study, {"deduplicate": Choices(choices=("phash", "none"))}), Runs(tmp_path / "runs")
        ).bad
        == {}
    )


def test_images_that_cannot_be_opened_or_have_no_caption_are_refused_with_their_reasons(study, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "images" / f"{number:02}.png").write_bytes((WATERCOLOR / "01.png").read_bytes()[:900])
    why = "cannot be read: it is cut short or damaged"
    assert refusal(study, tmp_path / "runs") == (
        f"3 images cannot be used: 01.png ({why}), 02.png ({why}), 03.png ({why}); "
        "3 images can be used, data.min_images is 4: no filter can help"
    )
    for number in range(2, 7):
        (tmp_path / "images" / f"{number:02}.txt").unlink()
    assert "02.png (caption is missing" in refusal(study, tmp_path / "runs")


def test_a_score_counts_where_it_is_known(study, tmp_path, backbone):
    runs, hard = Runs(tmp_path / "runs"), changed(study, min_score=0.99)
    look_ahead(hard, runs)  # nobody knows yet
    survey = survey_data(study, runs, "cpu", lambda number, total: None)
    assert look_ahead(study, runs).unscored == 0
    with pytest.raises(NoTrialPossible, match="image_aesthetics_filter drops 6"):
        look_ahead(hard, runs)
    best = float(survey.table["score"].nlargest(4).min()) / 10
    assert look_ahead(changed(study, min_score=best), runs).bad == {}


SIDES = st.sampled_from([40, 64, 100, 180])
BOUNDS = st.fixed_dictionaries(
    {},
    optional={
        "min_width": st.sampled_from([1, 60, 100, 200]),
        "max_width": st.sampled_from([None, 50, 90, 300]),
        "min_height": st.sampled_from([1, 60, 100]),
        "min_ratio": st.sampled_from([0.1, 0.5, 1.0]),
        "max_ratio": st.sampled_from([1.0, 2.0, 9.0]),
        "max_size": st.sampled_from([None, 300, 10**6]),
        "deduplicate": st.sampled_from(["phash", "dhash", "none"]),
        "subset": st.sampled_from([None, "", "b"]),
    },
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fixed=BOUNDS,
    low=st.sampled_from([1, 70, 150]),
    same=st.booleans(),
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=4, max_size=7),
)
def test_what_is_refused_is_what_no_filter_keeps(tmp_path_factory, write_study, fixed, low, sizes, same):
    folder = tmp_path_factory.mktemp("sizes")
    study = load_study(str(make_study(folder, write_study)))
    shutil.rmtree(folder / "images")
    for number, size in enumerate(sizes):
        path = folder / "images" / ("b" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = Image.open(WATERCOLOR / ("01.png" if same else f"{number + 1:02}.png"))
        source.resize(size).save(path)
        path.with_suffix(".txt").write_text("a cat")
    study = changed(study, {"min_height": Range(low=low, high=170)}, **fixed)
    table = audit(study.data.value, Cache(folder / "cache"), lambda image: 5.0, "scorer")
    possible = any(
        len(select(table, replace(study.data.filters, min_height=height))) >= study.data.min_images
        for height in (low, 170)
    )
    try:
        look_ahead(study, Runs(folder / "runs"))
        refused = False
    except NoTrialPossible:
        refused = True
    assert refused == (not possible)


def test_images_smaller_than_they_are_trained_at_are_noted(study, tmp_path):
    study = study.model_copy(update={"render": Rendering(size_px=1024)})
    (note,) = look_ahead(study, Runs(tmp_path)).notes
    assert note == (
        "6 of 6 images have a side under size_px 1024 and are enlarged for training, the smallest from 128 "
        "x 128 px: there is no detail in them to learn"
    )


def test_another_gate_than_the_challenge_s_is_noted(study, tmp_path):
    objective = replace(study.objective, gate=5.5)
    assert look_ahead(study.model_copy(update={"objective": objective}), Runs(tmp_path)).notes == (
        "objective.gate is 5.5, but the challenge's gate is 6",
    )


def test_captions_that_are_cut_off_are_noted_with_the_template_s_lost_words(tmp_path, write_study):
    path = make_study(
        tmp_path, write_study, ("a cat", "a cat, " * 120, "a cat, " * 200, "a cat", "a cat", "a cat")
    )
    runs = Runs(tmp_path / "runs")
    (note,) = look_ahead(load_study(str(path)), runs).notes
    assert note == (
        "2 captions are longer than the 256 tokens that the text encoder reads, so the end is cut off "
        "(02.png with 365, 03.png with 605); of 2 of them that takes away words of data.caption, ', "
        "watercolor style': write them before {prompt}"
    )
    path.write_text(path.read_text().replace("{prompt}, watercolor style", "watercolor style, {prompt}"))
    (note,) = look_ahead(load_study(str(path)), runs).notes
    assert note.endswith("03.png with 606)")
    path.write_text(path.read_text().replace("watercolor style, {prompt}", "cat, " * 150))
    (note,) = look_ahead(load_study(str(path)), runs).notes  # the same caption for all
    assert "6 captions are longer" in note
    assert "write them before" not in note


def test_prompts_of_the_story_that_are_cut_off_are_noted(study, tmp_path):
    long = study.story.scenes[2].model_copy(update={"prompt": "左边有猫，" * 80})
    story = study.story.model_copy(
        update={
            "scenes": (*study.story.scenes[:2], long, *study.story.scenes[3:]),
            "negative_prompt": "blur, " * 200,
        }
    )
    prompt, negative = look_ahead(study.model_copy(update={"story": story}), Runs(tmp_path)).notes
    assert prompt.startswith(
        "1 story prompt is longer than the 256 tokens that the text encoder reads, so the end is cut off ("
    )
    assert "takes away words of the story's template, '" in prompt
    assert negative.startswith("1 negative prompt is longer than the 256 tokens")


def test_sizes_of_an_audit_table_are_told_in_whole_px(study):
    """Where an image cannot be used its columns hold floats."""
    (note,) = [note for note in notes_on_study(study, {}, [(80.0, 60.0)]) if "size_px" in note]
    assert "the smallest from 80 x 60 px" in note


def test_a_plan_counts_what_new_images_take(study, tmp_path):
    plain, full = (make_plan(study, Runs(tmp_path), new_images=count) for count in (0, 5000))
    more_s = full.ends_s(full.pace)[-1] - plain.ends_s(plain.pace)[-1]
    assert 60 < more_s < 600  # it took 162 s


def test_the_doctor_refuses_what_a_sweep_would(study, tmp_path):
    check = check_data(changed(study, min_width=4096), Runs(tmp_path / "runs"))
    assert (check.state, "image_shape_filter drops 6" in check.found) == ("missing", True)


@pytest.mark.parametrize("words", [("run", "--dry-run"), ("run",), ("plan",)])
def test_every_command_refuses_it_before_anything_is_loaded(tmp_path, write_study, cli, words):
    path = make_study(tmp_path, write_study)
    path.write_text(path.read_text().replace("filters: {}", "filters: {min_width: 4096}"))
    done = cli(words[0], path, *words[1:], "--runs", tmp_path / "runs")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "image_shape_filter drops 6" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [("run", "--dry-run"), ("plan",)])
def test_images_that_cannot_be_used_are_named(tmp_path, write_study, cli, words):
    path = make_study(tmp_path, write_study)
    shutil.copy(path, tmp_path / "images" / "broken.png")
    done = cli(words[0], path, *words[1:], "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "1 image cannot be used: broken.png (" in done.stdout


def test_a_plan_of_images_without_captions_is_refused(tmp_path, write_study, cli):
    path = make_study(tmp_path, write_study)
    for caption in (tmp_path / "images").glob("*.txt"):
        caption.unlink()
    done = cli("plan", path, "--runs", tmp_path / "runs")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("words", [("run", "--dry-run"), ("run",)])
def test_a_tracking_address_that_cannot_work_is_refused_before_anything_is_loaded(
    tmp_path, write_study, cli, words
):
    runs = tmp_path / "runs"
    done = cli(
        words[0],
        make_study(tmp_path, write_study),
        *words[1:],
        "--runs",
        runs,
        MLFLOW_TRACKING_URI=f"sqlite:///{runs}/mine/study.db",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "but that is a study's own database: name another file" in done.stderr
    assert not runs.exists()


def test_a_renamed_study_is_refused_before_anything_is_loaded(tmp_path, write_study, cli):
    path, runs = make_study(tmp_path, write_study), Runs(tmp_path / "runs")
    runs.study("mine").path.mkdir(parents=True)
    open_store(runs.study("mine").path)
    done = cli("run", path, "--dry-run", "--runs", runs.path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "study.db: it holds study demo" in done.stderr
    check = check_runs(load_study(str(path)), runs)
    assert (check.state, "it holds study demo" in check.found) == ("missing", True)
