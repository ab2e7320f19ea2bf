"""Messages between driver and worker read back as they were sent, and journals of old versions are read."""

import json
from pathlib import Path

import pytest

from core.folders import TrialFolder
from core.trial.spec import Training
from sweep import events
from sweep.events import (
    SENT,
    Attempt,
    Event,
    Pack,
    Setup,
    Stop,
    Task,
    decode,
    decode_order,
    encode,
    encode_order,
    read_journal,
    said_now,
    write_journal,
)
from tests.examples import make_spec

SAID: list[Event] = [
    events.Ready(
        device="cuda:0",
        seconds=2.5,
        threads=8,
        unknown_words=["蓝"],
        weights={"unet": "ab"},
        scorer="s",
        scoring_version=2,
        processor="NVIDIA H100",
        canary=[4.5, 5.25],
        base_story=[],
        versions={"torch": "2.9"},
    ),
    events.Refused(message="no weights", loading=True),
    events.Started(),
    events.Looking(image=1, total=30),
    events.Note("note: an image is odd"),
    events.Training(images=20, steps=300),
    events.Resumed(100),
    events.Epoch(epoch=2, losses=[0.5, 0.25]),
    events.Drawing(8),
    events.Image(3),
    events.Finished(state="failed", reason="nan_loss", message="the loss was no number"),
    events.Stopped(),
    events.Alive(),
]
# As versions before this file wrote them.
JOURNAL = """\
{"event": "started", "time": 1764000000.5, "monotonic": 10.5, "number": 3}
{"event": "looking", "time": 1764000001.5, "monotonic": 11.5, "number": 3, "picture": 1, "pictures": 8}
{"event": "note", "time": 1764000001.5, "monotonic": 11.5, "number": 3, "text": "note: 1 picture cannot be used"}
{"event": "training", "time": 1764000002.5, "monotonic": 12.5, "number": 3, "images": 7, "steps": 2}
{"event": "resumed", "time": 1764000002.5, "monotonic": 12.5, "number": 3, "step": 1}
{"event": "epoch", "time": 1764000003.5, "monotonic": 13.5, "number": 3, "epoch": 1, "losses": [0.5, 0.25]}
{"event": "drawing", "time": 1764000004.5, "monotonic": 14.5, "number": 3, "pictures": 8}
{"event": "picture", "time": 1764000005.5, "monotonic": 15.5, "number": 3, "picture": 1}
{"event": "finished", "time": 1764000006.5, "monotonic": 16.5, "number": 3, "state": "complete", "reason": null, "message": null}
"""  # noqa: E501  as in a file
UNREAD = ("looking", "drawing", "picture")  # nothing but a display needs them


@pytest.mark.parametrize("event", SAID, ids=lambda event: type(event).__name__)
def test_an_event_reads_back(event: Event) -> None:
    message = said_now(event, 3)
    assert encode(message).count("\n") == 1
    assert decode(encode(message)) == message


def test_every_event_that_a_worker_sends_is_among_them() -> None:
    assert {type(event) for event in SAID} == set(SENT.values())


def test_orders_and_the_setup_read_back(tmp_path: Path) -> None:
    setup = Setup(
        cache=tmp_path / "a cache", base=tmp_path / "a base", device="cuda:1", checkpoint_every_s=0.5
    )
    assert Setup.from_arguments(setup.arguments()) == setup
    attempt = Attempt(micro_batch=2, retried=("hung",))
    task = Task(spec=make_spec(0, train=Training()), folder=TrialFolder(tmp_path), attempt=attempt)
    for order in (Pack((task,)), Stop()):
        assert decode_order(encode_order(order)) == order


def test_a_journal_of_an_older_version_can_be_read_and_gone_on_with(tmp_path: Path) -> None:
    """Lines of an unknown kind, also those that spoke of pictures, and incomplete lines are left out."""
    journal = tmp_path / "events.jsonl"
    journal.write_text(JOURNAL + '{"event": "beheld", "time": 1764000007.5}\n{"event": "epoch", "ti\n')
    write_journal(journal, said_now(events.Started(), 3))
    *found, last = read_journal(journal)
    lines = [line for line in map(json.loads, JOURNAL.splitlines()) if line["event"] not in UNREAD]
    assert [(type(m.event).__name__.lower(), m.time, m.monotonic, m.number) for m in found] == [
        (line["event"], line["time"], line["monotonic"], 3) for line in lines
    ]
    assert found[4].event == events.Epoch(epoch=1, losses=[0.5, 0.25])
    assert last.event == events.Started()
