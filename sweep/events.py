"""The protocol between the driver and a worker: every message in either direction.

A worker is a process of its own that owns one device. It is given its `Setup` once, as arguments, when it
starts. After that both sides write one JSON object a line.

Driver to worker, on the worker's standard input: `Pack`s of trials to carry out (of one trial each, for now),
and at any time `Stop`: finish the current step, save a checkpoint, send `Stopped` and end. When this stream
ends, the driver is gone, and the worker ends at once.

Worker to driver, on the worker's standard output: events, each with the trial's number and two clocks
(`Message`).
- With its first pack it loads the base model and sends `Ready`, or sends `Refused` with `loading` and ends.
- Then, for each trial: `Started`; `Looking` and `Note` while its images are read and scored; `Training`;
  `Resumed` and the `Epoch`s that a checkpoint holds, if there is one; an `Epoch` after each further epoch;
  `Drawing`; an `Image` after each one; `Finished`, whether the trial is complete or failed. The base
  model's own story has no training: `Drawing` follows `Started`.
- `Refused` without `loading` takes the place of `Finished` where damaged weights make every trial impossible;
  then the worker ends.
- `Alive` is the heartbeat of long work, at most once a second.
A worker that dies sends nothing: the driver sees the stream end, or waits too long for a heartbeat
(sweep/worker/watchdog.py). It may then start a fresh worker and send it the same trial; the driver itself
reports this as `Again`, which no worker ever sends.

What a worker sends of a trial, but for `Alive`, `Stopped` and `Refused`, is also written to its journal,
`trials/NNNN/events.jsonl`, as the same lines; each attempt begins a new journal.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

from core.files.fail_point import fail_point
from core.files.files import from_json, read_json, write_json
from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.failures import CUDA_OOM, failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Arguments of a worker process; `device` is a name such as `auto`, `cpu` or `cuda:1`, `base` the folder
    of the base model's own story.
    """

    cache: Path
    base: Path
    device: str
    checkpoint_every_s: float

    def arguments(self) -> list[str]:
        """The command line's arguments; `from_arguments` reads them."""
        return [str(self.cache), str(self.base), self.device, str(self.checkpoint_every_s)]

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """Raises ValueError where they are not those of `arguments`."""
        cache, base, device, seconds = arguments
        return cls(cache=Path(cache), base=Path(base), device=device, checkpoint_every_s=float(seconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt at a trial.

    `retried` has the failure class of each earlier attempt (sweep/failures.py); `micro_batch` is how many
    rows go through the UNet at a time, a divisor of the batch size.
    """

    micro_batch: int
    retried: tuple[str, ...] = ()

    @property
    def was_out_of_memory(self) -> bool:
        """Whether an earlier attempt ran out of GPU memory."""
        return CUDA_OOM.name in self.retried

    def after(self, reason: str | None) -> Self | None:
        """The attempt after this one failed with `reason`; None if a retry would not help."""
        if not reason or not failure(reason).retried or reason in self.retried:
            return None
        again = replace(self, retried=(*self.retried, reason))
        if reason != CUDA_OOM.name:
            return again
        smaller = [size for size in range(1, self.micro_batch) if self.micro_batch % size == 0]
        # Without a smaller size it is retried as it is: another program may have held the memory.
        return replace(again, micro_batch=smaller[-1]) if smaller else again

    def save(self, path: Path) -> None:
        """Keep it for a later driver, which reads it with `load`."""
        write_json(path, self)

    @classmethod
    def load(cls, path: Path, batch_size: int) -> Self:
        """What an earlier driver saved, if its micro-batch divides `batch_size`; else a first attempt."""
        try:
            attempt = read_json(path, cls)
            return attempt if batch_size % attempt.micro_batch == 0 else cls(micro_batch=batch_size)
        except (OSError, ValueError, ZeroDivisionError):
            return cls(micro_batch=batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One trial to run: its settings, the folder for its files, and which attempt this is."""

    spec: TrialSpec
    folder: TrialFolder
    attempt: Attempt

    def failed(self, reason: str | None, message: str | None, duration_s: float = 0.0) -> Result:
        """The result of this attempt, failed with `reason` (a class such as nan_loss)."""
        return Result(
            state="failed",
            spec=self.spec,
            reason=reason,
            message=message,
            micro_batch=self.attempt.micro_batch,
            retried=self.attempt.retried,
            duration_s=duration_s,
        )


@dataclass(frozen=True, slots=True)
class Pack:
    """Trials sent in one order (one, for now), run one after the other."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish the current step, save a checkpoint, end."""


Order = Pack | Stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The base model is loaded, which took `seconds`.

    `weights` has the sha256 of each part's files, `unknown_words` the pieces of the story's prompts that its
    tokenizer does not know, `threads` how many threads compute if the device is a CPU. `canary` has the
    scores of the shipped images, `base_story` those of the base model's story, taken again from its files
    (empty where there is none yet); they depend on the `processor` (its model) and on the packages in
    `versions`.
    """

    device: str
    seconds: float
    threads: int
    unknown_words: Sequence[str]
    weights: Mapping[str, str]
    scorer: str
    scoring_version: int
    processor: str
    canary: Sequence[float]
    base_story: Sequence[float]
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The base model cannot be loaded, or its weights are damaged: no trial is possible. The worker ends."""

    message: str
    loading: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt at the trial begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Looking:
    """Training image `image` of `total` is read, or scored, for the first time."""

    image: int
    total: int


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the user."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Everything is encoded, and training begins."""

    images: int
    steps: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """Training goes on from a checkpoint, after `step` steps."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """Epoch `epoch`, counted from 1, is trained and saved; `losses` has one loss for each step."""

    epoch: int
    losses: Sequence[float]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Rendering of the story begins; it has `images` images."""

    images: int


@dataclass(frozen=True, slots=True)
class Image:
    """Image `image` of the story, counted from 1, is rendered and saved."""

    image: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The trial is over; result.json is written, unless the disk is full."""

    state: Literal["complete", "failed"]
    reason: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """As asked, the worker has saved a checkpoint of the current trial; it ends."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The heartbeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """The driver retries the trial, with this micro-batch, after a failure of class `reason`."""

    reason: str
    message: str
    micro_batch: int


Sent = (
    Ready
    | Refused
    | Started
    | Looking
    | Note
    | Training
    | Resumed
    | Epoch
    | Drawing
    | Image
    | Finished
    | Stopped
    | Alive
)
Event = Sent | Again
SENT: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in get_args(Sent)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """An event and its time.

    `time` is in seconds since 1970, `monotonic` by time.monotonic, which all processes of a machine share and
    nobody can set. `number` is the trial's; None where the event is about the worker.
    """

    event: Event
    number: int | None = None
    time: float
    monotonic: float = 0.0  # in journals of earlier versions


def said_now(event: Event, number: int | None = None) -> Message:
    """The event as a message of this moment, for trial `number`."""
    return Message(event=event, number=number, time=time.time(), monotonic=time.monotonic())


def encode(message: Message) -> str:
    """The message as one line of JSON with its line break; `decode` reads it."""
    head = {
        "event": type(message.event).__name__.lower(),
        "time": message.time,
        "monotonic": message.monotonic,
    }
    about = {} if message.number is None else {"number": message.number}
    return json.dumps(head | about | asdict(message.event)) + "\n"


def decode(line: str) -> Message:
    """The message of one line. Raises ValueError or KeyError where it is none of this version."""
    values = from_json(json.loads(line), dict[str, object])
    return from_json(values | {"event": from_json(values, SENT[from_json(values["event"], str)])}, Message)


def encode_order(order: Order) -> str:
    """The order as one line of JSON with its line break; `decode_order` reads it."""
    return json.dumps({type(order).__name__.lower(): asdict(order)}, default=str) + "\n"


def decode_order(line: str) -> Order:
    """The order of one line. Raises ValueError where it is none."""
    values = from_json(json.loads(line), dict[str, object])
    return Stop() if "stop" in values else from_json(values.get("pack"), Pack)


def write_journal(journal: Path, message: Message) -> None:
    """Append the message as one line."""
    with journal.open("a", encoding="utf-8") as handle:
        fail_point(f"write {journal.name}")
        handle.write(encode(message))


def read_journal(journal: Path) -> list[Message]:
    """The messages of a trial so far; lines that are incomplete or of another version are left out."""
    if not journal.exists():
        return []
    messages = []
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            messages.append(decode(line))
        except (ValueError, KeyError):
            continue
    return messages
