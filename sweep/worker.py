"""The worker process: owns one device, keeps the base model, takes packs of trials, sends events.

One JSON object a line: packs come in on stdin, events go out on what was stdout; anything that libraries print goes
to stderr, which the driver keeps in worker.log. Run by the driver as `python -m sweep.worker`.
"""
import ctypes
import json
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
from typing import Any, TextIO

from core.fail_point import at_trial, fail_point
from core.files import write_json, write_text
from core.folders import TrialFolder
from core.machine_trouble import machine_trouble
from core.settings import Result, TrialSpec
from core.verdict import SCORING_VERSION
from sweep.attempt import Attempt
from sweep.failures import BAD_IMAGE, BLACK_PICTURES, BUG, NAN_LOSS, NO_IMAGES, failure
from sweep.stop import SIGNALS

log = logging.getLogger(__name__)
BEAT_S = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    # A batch system may send its warning to every process of a job: only the driver answers, and asks for a checkpoint.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _end_with_the_driver()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    _quiet_libraries()
    serve(Orders(sys.stdin), events)


def _end_with_the_driver() -> None:
    """Have the kernel end this process with its parent: one that hangs in a device cannot see by itself that nobody is left."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(orders: "Orders", events: TextIO) -> None:
    """Take packs until told to stop: {"specs", "folders", "attempts", "checkpoint_every_s", "cache", "device"}."""
    import torch  # here, not at the first pack: these imports run while the driver opens its stores

    from core.backbone import load_backbone, unknown_story_words
    from core.beat import Interrupted
    from core.cache import Cache
    from core.weight_files import WeightsError

    torch.set_flush_denormal(True)
    backbone, cache = None, None
    for order in orders:
        specs = [TrialSpec.from_json(values) for values in order["specs"]]
        if backbone is None:
            started = time.monotonic()
            try:
                fail_point("load")
                backbone = load_backbone(specs[0].backbone, order["device"], specs[0].precision, specs[0].weights)
            except Exception as refusal:
                log.exception("the base model cannot be loaded")
                _send(events, None, "refused", message=_first_line(refusal), loading=True)
                return
            cache = Cache(Path(order["cache"]))
            unknown = unknown_story_words(backbone, [scene.prompt for scene in specs[0].story.scenes])
            _send(events, None, "ready", device=str(backbone.device), seconds=time.monotonic() - started,
                  threads=torch.get_num_threads(), unknown_words=unknown, weights=backbone.weights,
                  scorer=backbone.scorer_name, scoring_version=SCORING_VERSION)
        for spec, path, values in zip(specs, order["folders"], order["attempts"], strict=True):
            folder = TrialFolder(Path(path))
            at_trial(spec.number)
            try:
                result = _attempt(Attempt.from_json(values), spec, backbone, cache, folder,
                                  Voice(events, folder, spec.number, orders.stop), order["checkpoint_every_s"])
            except Interrupted:
                _send(events, None, "stopped", number=spec.number)
                return
            except WeightsError as refusal:
                _send(events, None, "refused", message=_first_line(refusal))
                return
            fail_point("result_unsaid")
            _send(events, folder.events, "finished", number=spec.number, state=result.state, reason=result.reason,
                  message=result.message)


class Orders:
    """Packs as they come on stdin; `stop` is set as soon as the driver asks for it.

    Once the driver is gone nobody waits for this trial: the process ends in the middle of it, so that it never writes
    into a folder that the next driver's worker has taken over.
    """

    def __init__(self, stdin: TextIO) -> None:
        self.stop = threading.Event()
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stdin,), daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while order := self._waiting.get():
            yield order

    def _read(self, stdin: TextIO) -> None:
        for line in stdin:
            order = json.loads(line)
            if "stop" in order:
                self.stop.set()
                self._waiting.put(None)
            else:
                self._waiting.put(order)
        os._exit(0)


class Voice:
    """What the worker says about one trial: events for the driver, kept in the trial's journal too."""

    def __init__(self, events: TextIO, folder: TrialFolder, number: int, stop: threading.Event) -> None:
        self._events, self._folder, self._number, self._stop = events, folder, number, stop
        self._spoke_at = 0.0

    def report(self, event: str, **facts: Any) -> None:
        _send(self._events, self._folder.events, event, number=self._number, **facts)
        self._spoke_at = time.monotonic()

    def beat(self) -> None:
        """A heartbeat, at most once a second. Raises Interrupted when the driver wants to stop."""
        from core.beat import Interrupted

        if self._stop.is_set():
            raise Interrupted
        if time.monotonic() - self._spoke_at >= BEAT_S:
            _send(self._events, None, "alive", number=self._number)
            self._spoke_at = time.monotonic()


def _attempt(attempt: Attempt, spec: TrialSpec, backbone: Any, cache: Any, folder: TrialFolder, voice: Voice,
             checkpoint_every_s: float) -> Result:
    """Run a trial; whatever goes wrong in it becomes its failed result, but for weights that no trial can be made with."""
    from core.beat import Interrupted
    from core.weight_files import WeightsError
    from sweep.trial import run_trial

    started = time.monotonic()
    try:
        _clear(folder)
        voice.report("started")
        return run_trial(spec, backbone, cache, folder, voice.report, attempt=attempt, beat=voice.beat,
                         checkpoint_every_s=checkpoint_every_s)
    except (Interrupted, WeightsError):
        raise
    except Exception as error:
        reason = failure_class(error)
        result = Result(state="failed", spec=spec, reason=reason, message=_first_line(error), micro_batch=attempt.micro_batch,
                        retried=attempt.retried, duration_s=time.monotonic() - started)
        log.error("trial %d failed as %s: %s", spec.number, reason, result.message,
                  exc_info=None if failure(reason).explained else error)
        with suppress(OSError):  # on a full disk; the driver hears of it all the same
            if reason == BUG.name:  # the others are explained by their message
                write_text(folder.traceback, "".join(traceback.format_exception(error)))
            write_json(folder.result, result.to_json())
        return result


def _clear(folder: TrialFolder) -> None:
    """Room for a new attempt: half-written files and the old journal go, a checkpoint and finished epochs stay."""
    folder.path.mkdir(parents=True, exist_ok=True)
    for path in (folder.events, folder.result, folder.traceback, *folder.path.rglob(".*.tmp")):
        path.unlink(missing_ok=True)


def failure_class(error: Exception) -> str:
    """The class of a failure, by what was raised."""
    from core.data_folder import DataError
    from core.picture import PictureError
    from core.score import NoScoreError
    from core.train import NanLossError
    from sweep.trial import BlackPicturesError, NoImagesError

    classes = {NanLossError: NAN_LOSS, NoImagesError: NO_IMAGES, BlackPicturesError: BLACK_PICTURES,
               NoScoreError: BLACK_PICTURES, DataError: BAD_IMAGE, PictureError: BAD_IMAGE}
    for kind, row in classes.items():
        if isinstance(error, kind):
            return row.name
    return machine_trouble(error) or BUG.name


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:500] or type(error).__name__


def _send(events: TextIO, journal: Path | None, event: str, **facts: Any) -> None:
    line = json.dumps({"event": event, "time": time.time(), "monotonic": time.monotonic(), **facts}) + "\n"
    if journal:
        # On a full disk the driver must hear of the end all the same; anything earlier ends the trial as disk_full.
        with suppress(OSError) if event == "finished" else nullcontext(), journal.open("a", encoding="utf-8") as handle:
            fail_point(f"write {journal.name}")
            handle.write(line)
    events.write(line)
    events.flush()


def _quiet_libraries() -> None:
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


if __name__ == "__main__":
    main()
