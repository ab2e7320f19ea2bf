"""The worker process: owns one device, keeps the base model, takes packs of trials, sends events (see
sweep/events.py).

Anything that libraries print goes to stderr, which the driver keeps in worker.log.
"""

import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from core.errors import first_line
from core.files.fail_point import at_trial, fail_point
from core.files.files import write_json, write_text
from core.files.weight_files import WeightsError
from core.folders import TrialFolder
from core.heartbeat import Interrupted
from core.machine_trouble import machine_trouble
from core.trial.result import Result
from core.trial.spec import TrialSpec
from core.verdict import SCORING_VERSION
from sweep import events
from sweep.events import Event, Pack, Setup, Stop, Task, decode_order, encode, said_now, write_journal
from sweep.failures import BAD_IMAGE, BLACK_IMAGES, BUG, NAN_LOSS, NO_IMAGES, failure
from sweep.stop import SIGNALS

if TYPE_CHECKING:
    from core.backbone.backbone import Backbone
    from core.files.cache import Cache

log = logging.getLogger(__name__)
HEARTBEAT_S = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Run this process as a worker: `Setup` in sys.argv, orders on stdin, events on stdout, log on stderr."""
    # A batch system may send its warning to every process of a job: only the driver answers, and asks for a
    # checkpoint.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _end_with_the_driver()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    _quiet_libraries()
    serve(Setup.from_arguments(sys.argv[1:]), PackQueue(sys.stdin), out)


def _end_with_the_driver() -> None:
    """Have the kernel kill this process when its parent dies: hung in a device, it could not notice that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(setup: Setup, packs: "PackQueue", out: TextIO) -> None:
    """Load the base model for the first pack, then run the trials of each pack until asked to stop."""
    # transformers imports scikit-learn where it finds it, for text generation: a fifth of a worker's start.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    # Here, not at the first pack: these imports run while the driver opens its stores.
    import core.backbone.backbone  # noqa: F401
    from core.files.cache import Cache

    backbone, cache = None, Cache(setup.cache)
    for pack in packs:
        backbone = backbone or _load(pack.tasks[0].spec, setup, out)
        if backbone is None:
            return
        for task in pack.tasks:
            at_trial(task.spec.number)
            reporter = Reporter(out, task.folder.events, task.spec.number, packs.stop)
            if not _carry_out(task, backbone, cache, reporter, setup.checkpoint_every_s):
                return


def _load(spec: TrialSpec, setup: Setup, out: TextIO) -> "Backbone | None":
    """The base model, sending `Ready`; None if it cannot be loaded, sending `Refused`."""
    import torch

    from core.backbone.backbone import load_backbone
    from core.story.canary import canary, rated_again
    from sweep.trial import package_versions

    started = time.monotonic()
    try:
        fail_point("load")
        backbone = load_backbone(spec.backbone, setup.device, spec.precision, spec.weights)
        scores, base_story = canary(backbone), rated_again(backbone, TrialFolder(setup.base))
    except Exception as refusal:
        log.exception("the base model cannot be loaded")
        _send(out, events.Refused(message=first_line(refusal), loading=True))
        return None
    unknown = backbone.unknown_words([scene.prompt for scene in spec.story.scenes])
    _send(
        out,
        events.Ready(
            device=str(backbone.device),
            seconds=time.monotonic() - started,
            threads=torch.get_num_threads(),
            unknown_words=unknown,
            weights=backbone.weights,
            scorer=backbone.model.scorer,
            scoring_version=SCORING_VERSION,
            processor=backbone.processor,
            canary=scores,
            base_story=base_story,
            versions=package_versions(),
        ),
    )
    return backbone


class PackQueue:
    """Iterates over the packs that arrive on stdin; `stop` is set as soon as the driver asks to stop.

    When stdin ends, the driver is gone: the process then exits in the middle of a trial, so that it never
    writes into a folder that the next driver's worker has taken over.
    """

    def __init__(self, stdin: TextIO) -> None:
        self.stop = threading.Event()
        self._waiting: queue.SimpleQueue[Pack | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stdin,), daemon=True).start()

    def __iter__(self) -> Iterator[Pack]:
        while pack := self._waiting.get():
            yield pack

    def _read(self, stdin: TextIO) -> None:
        for line in stdin:
            match decode_order(line):
                case Pack() as pack:
                    self._waiting.put(pack)
                case Stop():
                    self.stop.set()
                    self._waiting.put(None)
        os._exit(0)


class Reporter:
    """Sends events of one trial to the driver, and writes them to the trial's journal."""

    def __init__(self, out: TextIO, journal: Path, number: int, stop: threading.Event) -> None:
        self._out, self._journal, self._number, self._stop = out, journal, number, stop
        self._spoke_at = 0.0

    def report(self, event: Event) -> None:
        """Send an event and write it to the journal. Raises OSError where the journal cannot be written."""
        _send(self._out, event, self._number, self._journal)
        self._spoke_at = time.monotonic()

    def heartbeat(self) -> None:
        """Send a heartbeat, at most once a second. Raises Interrupted when the driver wants to stop."""
        if self._stop.is_set():
            raise Interrupted
        if time.monotonic() - self._spoke_at >= HEARTBEAT_S:
            self.say(events.Alive())
            self._spoke_at = time.monotonic()

    def say(self, event: Event) -> None:
        """Send an event without writing it to the journal."""
        _send(self._out, event, self._number)


def _carry_out(
    task: Task, backbone: "Backbone", cache: "Cache", reporter: Reporter, checkpoint_every_s: float
) -> bool:
    """Run one trial to its end -> whether the worker can go on with another."""
    from sweep.trial import run_trial

    started = time.monotonic()
    try:
        _clear(task.folder)
        reporter.report(events.Started())
        result = run_trial(
            task.spec,
            backbone,
            cache,
            task.folder,
            reporter.report,
            attempt=task.attempt,
            heartbeat=reporter.heartbeat,
            checkpoint_every_s=checkpoint_every_s,
        )
    except Interrupted:
        reporter.say(events.Stopped())
        return False
    except WeightsError as refusal:
        reporter.say(events.Refused(message=first_line(refusal)))
        return False
    except Exception as error:
        result = _failed(task, error, time.monotonic() - started)
    fail_point("result_unsaid")
    reporter.report(events.Finished(state=result.state, reason=result.reason, message=result.message))
    return True


def _failed(task: Task, error: Exception, duration_s: float) -> Result:
    """The failed result of a trial that raised `error`, logged and written to its folder."""
    reason = failure_class(error)
    result = task.failed(reason, first_line(error), duration_s)
    log.error(
        "trial %d failed as %s: %s",
        task.spec.number,
        reason,
        result.message,
        exc_info=None if failure(reason).explained else error,
    )
    with suppress(OSError):  # on a full disk; the driver gets the event all the same
        if reason == BUG.name:  # the others are explained by their message
            write_text(task.folder.traceback, "".join(traceback.format_exception(error)))
        write_json(task.folder.result, result)
    return result


def _clear(folder: TrialFolder) -> None:
    """Remove what an earlier attempt left, but for its checkpoint and its finished epochs."""
    folder.path.mkdir(parents=True, exist_ok=True)
    for path in (folder.events, folder.result, folder.traceback, *folder.path.rglob(".*.tmp")):
        path.unlink(missing_ok=True)


def failure_class(error: Exception) -> str:
    """The class of a failure, by what was raised."""
    from core.data.caption_table import DataError
    from core.data.image import ImageError
    from core.story.score import NoScoreError
    from core.train.train import NanLossError
    from sweep.trial import BlackImagesError, NoImagesError

    classes = {
        NanLossError: NAN_LOSS,
        NoImagesError: NO_IMAGES,
        BlackImagesError: BLACK_IMAGES,
        NoScoreError: BLACK_IMAGES,
        DataError: BAD_IMAGE,
        ImageError: BAD_IMAGE,
    }
    for kind, row in classes.items():
        if isinstance(error, kind):
            return row.name
    return machine_trouble(error) or BUG.name


def _send(out: TextIO, event: Event, number: int | None = None, journal: Path | None = None) -> None:
    message = said_now(event, number)
    if journal:
        # A full disk must not keep `Finished` from the driver; at any earlier event it ends the trial as
        # disk_full.
        with suppress(OSError) if isinstance(event, events.Finished) else nullcontext():
            write_journal(journal, message)
    out.write(encode(message))
    out.flush()


def _quiet_libraries() -> None:
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
