"""When room is short, the weights of trials that can no longer win go; nothing else does."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.files.files import write_json
from core.folders import Runs
from core.trial.spec import Training
from sweep import disk_room
from sweep.disk_room import NoRoom, ensure_room
from sweep.plan.cost import lora_parameters, trial_disk_bytes
from tests.sweep.search.test_optuna_study import complete, failed, spec


@pytest.fixture
def study(tmp_path):
    """Seven trials of a megabyte each: 0 to 5 with means 5.0 to 7.5, 6 failed."""
    folder = Runs(tmp_path).study("s")
    for number in range(7):
        trial = folder.trial(number)
        result = complete(number, 5 + number / 2) if number < 6 else failed(6, "killed")
        write_json(trial.result, result)
        trial.epoch_lora(1).parent.mkdir(parents=True)
        for path in (trial.lora, trial.epoch_lora(1)):
            path.write_bytes(bytes(500_000))
        trial.sheet.write_bytes(b"image")
    return folder


def kept(study):
    return [
        number
        for number in range(7)
        if study.trial(number).lora.exists() or study.trial(number).epoch_lora(1).exists()
    ]


def test_with_room_nothing_goes(study):
    assert ensure_room(study, spec(7), 2, None, set()) == []
    assert kept(study) == list(range(7))


def test_over_the_limit_the_worst_go_first_and_no_more_than_needed(study):
    assert ensure_room(study, spec(7), 2, 0.0055, set()) == [6, 0]
    assert kept(study) == [1, 2, 3, 4, 5]
    assert len(study.results()) == 7
    assert all(study.trial(number).sheet.exists() for number in range(7))


def test_the_best_and_the_baselines_stay_whatever_the_limit(study):
    assert ensure_room(study, spec(7), 2, 0.0001, {0}) == [6, 1, 2, 3]
    assert kept(study) == [0, 4, 5]
    assert ensure_room(study, spec(7), 2, 0.0001, {0}) == []


def test_trials_that_mlflow_waits_for_go_last(study):
    assert ensure_room(study, spec(7), 2, 0.0055, set(), sent={1, 3, 6}) == [6, 1]
    assert ensure_room(study, spec(7), 2, 0.0035, set(), sent={1, 3, 6}) == [3, 0]


def test_a_full_disk_says_what_is_missing(study, monkeypatch):
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(NoRoom, match=r"0\.0 GB are free and the next trial needs 0\.2 GB"):
        ensure_room(study, spec(7), 2, None, set())
    assert kept(study) == [4, 5]


def test_room_for_a_checkpoint_is_asked_for_too(study, monkeypatch):
    """While it is written there are two of them: the LoRA and its two moments, in fp32."""
    large = replace(spec(7), train=Training(lora_rank=16))
    lora_bytes = 4 * lora_parameters(large)
    free = disk_room.LEAST_BYTES + trial_disk_bytes(large) + 6 * lora_bytes
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert ensure_room(study, large, 2, None, set()) == []
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free - lora_bytes))
    with pytest.raises(NoRoom):
        ensure_room(study, large, 2, None, set())
