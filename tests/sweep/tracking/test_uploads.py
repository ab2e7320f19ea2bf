"""The order of uploads, and what happens when they fail."""

import threading
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from core.folders import StudyFolder
from sweep.tracking import tracking as tracking_module
from sweep.tracking.tracking import Tracking


class Receiver:
    """An experiment that records what it is sent; raises while it is down."""

    moved_at = 0.0

    def __init__(self) -> None:
        self.down = False
        self.got: list[str] = []

    def connect(self) -> None:
        self.take("the study")

    def forget(self) -> None:
        pass

    def progressed(self, takes_s: float = 0.0) -> None:
        self.moved_at = time.monotonic() + takes_s

    def take(self, what: str) -> None:
        if self.down:
            raise ConnectionError("down")
        self.got.append(what)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def asked() -> threading.Event:
    """Set once the user asks to stop."""
    return threading.Event()


@pytest.fixture
def tracking(receiver: Receiver, asked: threading.Event):
    made = Tracking(StudyFolder(Path("a folder")), receiver, asked.is_set)
    made._due.clear()  # nothing has to be connected
    made.start()
    yield made
    made.close()


def test_all_waits_in_order_for_a_receiver_that_is_down(receiver, tracking):
    receiver.down = True
    for what in "abc":
        tracking._put(what, lambda what=what: receiver.take(what))
    assert not tracking.flush(0.01)
    receiver.down = False
    assert tracking.flush(10)
    assert receiver.got == ["a", "b", "c"]


def test_a_newer_send_takes_the_place_of_the_one_that_waits(receiver, tracking):
    receiver.down = True
    tracking._put("trial 1", lambda: receiver.take("start of 1"))
    tracking._put("trial 2", lambda: receiver.take("start of 2"))
    tracking._put("trial 1", lambda: receiver.take("end of 1"))
    assert isinstance(tracking.first_error(10), ConnectionError)
    receiver.down = False
    assert tracking.flush(10)
    assert receiver.got == ["end of 1", "start of 2"]


def test_a_send_that_comes_while_its_forerunner_is_under_way_is_not_lost(receiver, tracking):
    under_way, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        under_way.set()
        assert go_on.wait(10)
        receiver.take("start")

    tracking._put("trial 1", slow)
    assert under_way.wait(10)
    tracking._put("trial 1", lambda: receiver.take("end"))
    go_on.set()
    assert tracking.flush(10)
    assert receiver.got == ["start", "end"]


def test_what_is_refused_is_said_and_holds_up_nothing(receiver, tracking, caplog):
    def refuse() -> None:
        raise MlflowException("never", INVALID_PARAMETER_VALUE)

    tracking._put("a", refuse)
    tracking._put("b", lambda: receiver.take("b"))
    assert tracking.flush(10)
    assert receiver.got == ["b"]
    assert caplog.messages == ["MLflow refuses a: never"]


def test_lost_and_back_are_one_line_each(receiver, tracking, caplog):
    receiver.down = True
    tracking._put("a", lambda: receiver.take("a"))
    for _ in range(3):
        assert not tracking.flush(0.01)
    receiver.down = False
    assert tracking.flush(10)
    assert caplog.messages == [
        "MLflow takes nothing at the moment (down); the sweep goes on, what is to be sent stays in a folder",
        "MLflow answers again; sending what waited",
    ]


def test_nothing_is_tried_before_the_pause_is_over(receiver, tracking):
    receiver.down = True
    tracking._put("a", lambda: receiver.take("a"))
    assert tracking.first_error(10)
    receiver.down = False
    tracking._put("b", lambda: receiver.take("b"))
    assert receiver.got == []  # the first pause is a second
    assert tracking.flush(10)
    assert receiver.got == ["a", "b"]


def test_an_end_waits_as_long_as_parts_arrive(receiver, tracking, caplog):
    def slow() -> None:
        for _ in range(8):
            time.sleep(0.3)
            receiver.progressed()
        receiver.take("a")

    tracking._put("a", slow)
    assert tracking.flush(1.5)
    assert receiver.got == ["a"]
    assert caplog.messages == [
        "MLflow is slow, waiting until it has everything; Ctrl-C ends this, the same command sends the rest"
    ]


def test_an_end_waits_for_a_part_that_takes_its_time(receiver, tracking):
    def slow() -> None:
        receiver.progressed(takes_s=60)
        time.sleep(1)
        receiver.take("a")

    tracking._put("a", slow)
    assert tracking.flush(0.5)


def test_an_end_does_not_wait_for_a_part_that_failed(receiver, tracking):
    def fail() -> None:
        receiver.progressed(takes_s=60)
        raise ConnectionError("down")

    tracking._put("a", fail)
    assert tracking.first_error(10)
    assert not tracking.flush(0.01)


def test_who_asks_to_stop_waits_no_longer_at_a_start_and_hardly_at_an_end(tracking, asked, monkeypatch):
    monkeypatch.setattr(tracking_module, "STOPPED_S", 0.1)
    answered = threading.Event()
    tracking._put("a", lambda: answered.wait(30))
    threading.Timer(0.3, asked.set).start()
    began = time.monotonic()
    assert tracking.first_error(30) is None
    assert not tracking.flush(30)
    assert time.monotonic() - began < 10
    answered.set()


def test_a_closed_outbox_sends_nothing_more(receiver, tracking):
    tracking.close()
    tracking._put("a", lambda: receiver.take("a"))
    assert not tracking.flush(0.01)
    assert receiver.got == []
