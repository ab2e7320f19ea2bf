"""The deadline follows the worker's phase and its own pace."""

from dataclasses import replace

import pytest

from core.trial.spec import Rendering, Training
from sweep import events
from sweep.events import said_now
from sweep.worker import watchdog
from sweep.worker.watchdog import FLOORS_S, LOOK_S, PATIENCE, Watchdog, work_of
from tests.examples import READY, make_spec

TRAINING, ALIVE = events.Training(images=8, steps=100), events.Alive()


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(watchdog.time, "monotonic", lambda: Clock.now)
    return Clock


def test_each_phase_has_its_own_floor(clock):
    dog = Watchdog()
    assert dog.left_s == FLOORS_S["start"]
    for event, phase in (
        (READY, "prepare"),
        (events.Started(), "prepare"),
        (TRAINING, "step"),
        (ALIVE, "step"),
        (events.Epoch(epoch=1, losses=(0.5,)), "step"),
        (events.Drawing(8), "image"),
        (events.Image(1), "image"),
        (events.Started(), "prepare"),
    ):
        dog.heard(said_now(event))
        assert (dog.phase, dog.left_s) == (phase, FLOORS_S[phase])


def test_every_event_renews_the_deadline(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += FLOORS_S["step"] - 1
    assert dog.left_s == 1
    dog.heard(said_now(ALIVE))
    assert dog.left_s > FLOORS_S["step"]


def test_a_slow_machine_gets_more_time(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += 100
    dog.heard(said_now(ALIVE))
    assert dog.allowed_s == PATIENCE * 100


def test_a_pause_of_the_driver_is_no_silence_of_the_worker(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += 4000
    dog.heard(replace(said_now(ALIVE), monotonic=clock.now - 3999))
    assert (dog.allowed_s, dog.left_s) == (FLOORS_S["step"], FLOORS_S["step"])


def test_time_in_which_the_driver_stood_still_counts_for_nobody(clock):
    """A worker that was suspended with it is neither late, nor taken for a slow one afterwards."""
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    for _ in range(2):
        clock.now += 4000
        dog.look()
        assert dog.left_s == FLOORS_S["step"] - LOOK_S
        clock.now += 0.5
        dog.look()
        dog.heard(said_now(ALIVE))
        assert (dog.allowed_s, dog.left_s) == (FLOORS_S["step"], FLOORS_S["step"])


def test_a_worker_that_stays_silent_after_the_driver_woke_is_hung(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += 4000
    for _ in range(int(FLOORS_S["step"] / LOOK_S) - 1):
        dog.look()
        assert dog.left_s > 0
        clock.now += LOOK_S
    dog.look()
    assert dog.left_s <= 0


def test_a_long_silence_is_not_waited_for_twenty_times(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += 1000
    dog.heard(said_now(ALIVE))
    assert dog.allowed_s == 1000 + 3600


def test_a_fresh_worker_starts_over(clock):
    dog = Watchdog()
    dog.heard(said_now(TRAINING))
    clock.now += 10_000
    dog.watch()
    assert (dog.phase, dog.left_s) == ("start", FLOORS_S["start"])


def test_a_first_step_of_large_images_gets_the_time_of_its_work_and_then_its_own(clock):
    dog = Watchdog()
    dog.work_sent(work_of(replace(make_spec(0, train=Training()), render=Rendering(size_px=2048))))
    dog.heard(said_now(TRAINING))
    assert dog.allowed_s == pytest.approx(FLOORS_S["step"] * 4.194304**2)
    clock.now += 600  # slow, not hung
    dog.heard(said_now(ALIVE))
    assert dog.allowed_s == 600 + 3600
    dog.work_sent(work_of(replace(make_spec(1, train=Training()), render=Rendering(size_px=128))))
    assert dog.allowed_s == FLOORS_S["step"]  # small images never hide behind large ones
    dog.work_sent(1e9)
    assert dog.allowed_s == FLOORS_S["step"] + 3600  # a hang is noticed before the morning, whatever the size
