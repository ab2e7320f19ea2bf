"""The order of uploads, and what happens when they fail."""

import threading
import time

import pytest

from sweep.tracking import outbox as outbox_module
from sweep.tracking.outbox import Outbox, Rejected


class Receiver:
    """Records what it is sent; raises while it is down."""

    def __init__(self) -> None:
        self.down = False
        self.got: list[str] = []

    def take(self, what: str) -> None:
        if self.down:
            raise ConnectionError("down")
        self.got.append(what)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def outbox():
    made = Outbox("the receiver", "a folder")
    made.start()
    yield made
    made.close()


def test_all_waits_in_order_for_a_receiver_that_is_down(receiver, outbox):
    receiver.down = True
    for what in "abc":
        outbox.put(what, lambda what=what: receiver.take(what))
    assert not outbox.flush(0.01)
    receiver.down = False
    assert outbox.flush(10)
    assert receiver.got == ["a", "b", "c"]


def test_a_newer_send_takes_the_place_of_the_one_that_waits(receiver, outbox):
    receiver.down = True
    outbox.put("trial 1", lambda: receiver.take("start of 1"))
    outbox.put("trial 2", lambda: receiver.take("start of 2"))
    outbox.put("trial 1", lambda: receiver.take("end of 1"))
    assert isinstance(outbox.first_error(10), ConnectionError)
    receiver.down = False
    assert outbox.flush(10)
    assert receiver.got == ["end of 1", "start of 2"]


def test_a_send_that_comes_while_its_forerunner_is_under_way_is_not_lost(receiver, outbox):
    under_way, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        under_way.set()
        assert go_on.wait(10)
        receiver.take("start")

    outbox.put("trial 1", slow)
    assert under_way.wait(10)
    outbox.put("trial 1", lambda: receiver.take("end"))
    go_on.set()
    assert outbox.flush(10)
    assert receiver.got == ["start", "end"]


def test_what_is_refused_is_said_and_holds_up_nothing(receiver, outbox, caplog):
    def refuse() -> None:
        raise Rejected("never")

    outbox.put("a", refuse)
    outbox.put("b", lambda: receiver.take("b"))
    assert outbox.flush(10)
    assert receiver.got == ["b"]
    assert caplog.messages == ["the receiver refuses a: never"]


def test_lost_and_back_are_one_line_each(receiver, outbox, caplog):
    receiver.down = True
    outbox.put("a", lambda: receiver.take("a"))
    for _ in range(3):
        assert not outbox.flush(0.01)
    receiver.down = False
    assert outbox.flush(10)
    assert caplog.messages == [
        "the receiver takes nothing at the moment (down); the sweep goes on, "
        "what is to be sent stays in a folder",
        "the receiver answers again; sending what waited",
    ]


def test_nothing_is_tried_before_the_pause_is_over(receiver, outbox):
    receiver.down = True
    outbox.put("a", lambda: receiver.take("a"))
    assert outbox.first_error(10)
    receiver.down = False
    outbox.put("b", lambda: receiver.take("b"))
    assert receiver.got == []  # the first pause is a second
    assert outbox.flush(10)
    assert receiver.got == ["a", "b"]


def test_an_end_waits_as_long_as_parts_arrive(receiver, outbox, caplog):
    def slow() -> None:
        for _ in range(8):
            time.sleep(0.3)
            outbox.progressed()
        receiver.take("a")

    outbox.put("a", slow)
    assert outbox.flush(1.5)
    assert receiver.got == ["a"]
    assert caplog.messages == [
        "the receiver is slow, waiting until it has everything; Ctrl-C ends this, "
        "the same command sends the rest"
    ]


def test_an_end_waits_for_a_part_that_takes_its_time(receiver, outbox):
    def slow() -> None:
        outbox.progressed(takes_s=60)
        time.sleep(1)
        receiver.take("a")

    outbox.put("a", slow)
    assert outbox.flush(0.5)


def test_an_end_does_not_wait_for_a_part_that_failed(outbox):
    def fail() -> None:
        outbox.progressed(takes_s=60)
        raise ConnectionError("down")

    outbox.put("a", fail)
    assert outbox.first_error(10)
    assert not outbox.flush(0.01)


def test_who_asks_to_stop_waits_no_longer_at_a_start_and_hardly_at_an_end(outbox, monkeypatch):
    monkeypatch.setattr(outbox_module, "STOPPED_S", 0.1)
    answered, asked = threading.Event(), threading.Event()
    outbox.put("a", lambda: answered.wait(30))
    threading.Timer(0.3, asked.set).start()
    began = time.monotonic()
    assert outbox.first_error(30, asked.is_set) is None
    assert not outbox.flush(30, asked.is_set)
    assert time.monotonic() - began < 10
    answered.set()


def test_a_closed_outbox_sends_nothing_more(receiver, outbox):
    outbox.close()
    outbox.put("a", lambda: receiver.take("a"))
    assert not outbox.flush(0.01)
    assert receiver.got == []
