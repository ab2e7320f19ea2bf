"""The pace of finished trials tells what the next one takes."""

from dataclasses import replace

import pytest

from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import Data, Filters, Rendering, Scene, Story, Training, TrialSpec
from sweep.plan.pace import Pace

SPEC = TrialSpec(
    study="quick",
    number=0,
    seed=0,
    backbone="tiny",
    precision="fp32",
    data=Data(source="."),
    story=Story(
        title="t", scenes=tuple(Scene(prompt="p", negative_prompt="", seed=seed) for seed in range(8))
    ),
    train=Training(epochs=2, steps_per_epoch=10, batch_size=3),
    render=Rendering(steps=5, cfg_scale=3, size_px=128),
    filters=Filters(),
    gate=6.0,
)


def finished(spec: TrialSpec = SPEC, **timings_s: float) -> Result:
    usual = {"prepare": 1.0, "train": 60.0, "render": 16.0, "score": 0.8}
    return Result(state="complete", spec=spec, timings_s=usual | timings_s)


def pace(*results: Result) -> Pace:
    found = Pace.of(results)
    assert found
    return found


def longer(**changes: float) -> TrialSpec:
    assert SPEC.train
    return replace(SPEC, train=replace(SPEC.train, **changes))


def test_there_is_no_pace_before_a_trial_is_finished():
    assert Pace.of([]) is None
    assert (
        Pace.of([Result(state="failed", spec=SPEC, reason="nan_loss"), finished(replace(SPEC, train=None))])
        is None
    )


def test_an_interrupted_trial_takes_what_is_left_of_it(tmp_path):
    found, folder = pace(finished()), TrialFolder(tmp_path)
    folder.epoch_lora(1).parent.mkdir(parents=True)
    folder.epoch_lora(1).touch()
    assert found.left_s(SPEC, folder) == pytest.approx(77.8)  # nothing to go on from
    folder.checkpoint.touch()
    assert found.left_s(SPEC, folder) == pytest.approx(47.8)


def test_a_trial_is_told_its_own_time():
    found = pace(finished())
    assert found.trials == 1
    assert found.parts_s(SPEC) == pytest.approx({"prepare": 1.0, "train": 60.0, "render": 16.0, "score": 0.8})
    assert found.trial_s(SPEC) == pytest.approx(77.8)


def test_training_grows_with_rows_and_drawing_with_forwards():
    found = pace(finished())
    assert found.parts_s(longer(epochs=6))["train"] == pytest.approx(180)
    assert found.parts_s(longer(steps_per_epoch=5, batch_size=1))["train"] == pytest.approx(10)
    assert found.parts_s(longer(epochs=6))["render"] == pytest.approx(16)
    assert found.parts_s(replace(SPEC, render=replace(SPEC.render, steps=10)))["render"] == pytest.approx(32)
    assert found.parts_s(replace(SPEC, render=replace(SPEC.render, cfg_scale=1.0)))[
        "render"
    ] == pytest.approx(8)


def test_all_but_preparation_and_scoring_grows_with_the_pixels():
    larger = replace(SPEC, render=replace(SPEC.render, size_px=256))
    assert pace(finished()).parts_s(larger) == pytest.approx(
        {"prepare": 1.0, "train": 240, "render": 64, "score": 0.8}
    )


def test_the_base_model_s_story_is_only_drawn_and_scored():
    assert pace(finished()).trial_s(replace(SPEC, train=None)) == pytest.approx(16.8)


def test_one_slow_trial_does_not_spoil_the_pace():
    """The first trial encodes what the cache lacks, and a busy machine may stall another."""
    found = pace(finished(prepare=90.0), finished(longer(epochs=4), train=120.0), finished(train=6000.0))
    assert found.trials == 3
    assert found.parts_s(SPEC) == pytest.approx({"prepare": 1.0, "train": 60.0, "render": 16.0, "score": 0.8})
