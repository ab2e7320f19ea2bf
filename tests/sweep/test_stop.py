import os
import signal
import time
from datetime import datetime, timedelta

import pytest

from sweep.stop import SIGNALS, StopRequest, asked_by_signal, hour


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> signal.Signals:
    return request.param


def test_the_first_signal_asks_and_the_second_insists(number: signal.Signals) -> None:
    asked: list[StopRequest] = []
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with asked_by_signal(asked.append):
            os.kill(os.getpid(), number)
            assert asked == [StopRequest(number.name, by_signal=True)]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with asked_by_signal(lambda _: pytest.fail("asked")):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


def test_the_hour_is_that_of_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that sleeps stops time.monotonic, and no sweep may work on past the hour because of it."""
    morning = hour((datetime.now() + timedelta(hours=8)).strftime("%H:%M"))
    assert 8 * 3600 - 61 < morning.left_s <= 8 * 3600
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 8 * 3600)
    assert -61 < morning.left_s <= 0
