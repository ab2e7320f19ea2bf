"""`lora-sweep measures`: the gates on a study's own images, then measures and flags of each trial's story."""

import json
import shutil

import pandas as pd
import pytest

from core.folders import Runs, StudyFolder
from core.trial.spec import Filters
from sweep.commands.measures import style_images
from tests.prepared import prepare


@pytest.fixture(scope="module")
def swept(tmp_path_factory, write_study, cli, known) -> Runs:
    """One trial of a few steps; its story is then replaced where a test needs another."""
    folder = tmp_path_factory.mktemp("measured")
    runs = prepare(Runs(folder / "runs"), known)
    done = cli("run", write_study(folder, trials=1, filters="{min_score: 0.5}"), "--runs", runs.path)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


@pytest.fixture
def study(swept, tmp_path) -> StudyFolder:
    return Runs(shutil.copytree(swept.path, tmp_path / "runs")).study("quick")


def measured(cli, study):
    done = cli("measures", "quick", "--json", "--runs", study.path.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_gates_and_a_row_for_each_trial(cli, study):
    done = cli("measures", "quick", "--runs", study.path.parent)
    assert done.returncode == 0, done.stderr
    words = done.stdout
    for expected in ("right against wrong", "scene_kept", "copy_risk", "aesthetic", "flags", "optimistic"):
        assert expected in words
    found = measured(cli, study)
    assert [set(gate["passes"]) for gate in found["gates"]] == [{"pair", "seed", "half", "file", "tone"}] * 7
    (row,) = found["trials"]
    assert row["trial"] == 0
    assert row["aesthetic_mean"] == study.trial(0).read_result().aesthetic_mean
    assert {"style_gain", "scene_kept", "sameness", "copy_risk"} <= set(row["measures"])
    assert row["style_unseen"] is False


def test_eight_equal_images_are_flagged_in_words(cli, study):
    trial = study.trial(0)
    for number in range(2, 9):
        shutil.copy(trial.image(1), trial.image(number))
    done = cli("measures", "quick", "--runs", study.path.parent)
    assert "trial 0: collapsed: its images are nearly one and the same" in done.stdout
    assert "collapsed" in measured(cli, study)["trials"][0]["flags"]


def test_without_the_base_story_it_is_one_line_and_exit_2(cli, study):
    study.base.image(3).unlink()
    done = cli("measures", "quick", "--runs", study.path.parent)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "the base model's story is not whole" in line


def test_without_images_it_is_one_line_and_exit_2(cli, study):
    text = study.frozen.read_text()
    study.frozen.write_text(text.replace("data/watercolor", "data/nowhere"))
    done = cli("measures", "quick", "--runs", study.path.parent)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere" in line


def test_a_trial_without_its_images_is_named_and_left_out(cli, study):
    study.trial(0).image(5).write_bytes(b"cut")
    done = cli("measures", "quick", "--json", "--runs", study.path.parent)
    assert done.returncode == 0
    assert "trial 0: not measured" in done.stderr
    assert json.loads(done.stdout)["trials"] == []


@pytest.mark.parametrize(
    ("filters", "files", "unseen"),
    [
        (Filters(max_ratio=1.6), ["wide.png", "wider.png"], True),
        (Filters(max_images=2), ["a.png", "wide.png"], False),  # the others score less than those
        (Filters(max_ratio=2.1), ["a.png", "b.png", "c.png", "wide.png"], False),  # one is not enough
    ],
)
def test_style_images_are_new_to_the_trial_and_no_worse(filters, files, unseen):
    rows = [
        ("a.png", 1.0, 8.0, "1"), ("b.png", 1.0, 7.0, "2"), ("c.png", 1.0, 6.0, "3"),
        ("twin.png", 1.0, 8.0, "1"), ("wide.png", 2.0, 7.5, "4"),
        ("wider.png", 2.2, 7.5, "5"), ("spoiled.png", 2.5, 2.0, "6"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["file", "ratio", "score", "phash"]).assign(
        problem="", subset="", width=128, height=128, size=1000
    )
    found, new = style_images(table, filters)
    assert (list(found["file"]), new) == (files, unseen)
