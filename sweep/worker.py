"""The worker process: owns one device, keeps the base model, takes packs of trials, sends events.

One JSON object a line: packs come in on stdin, events go out on what was stdout; anything that libraries print goes
to stderr, which the driver keeps in worker.log. Run by the driver as `python -m sweep.worker`.
"""
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from core.files import write_json, write_text
from core.folders import TrialFolder
from core.settings import Result, TrialSpec

log = logging.getLogger(__name__)


def main() -> None:
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    _quiet_libraries()
    serve(_packs(sys.stdin), events)


def serve(packs: Iterator[str], events: TextIO) -> None:
    """Take packs for ever: {"specs": [...], "folders": [...], "cache": path, "device": name}."""
    import torch  # here, not at the first pack: these imports run while the driver opens its stores

    from core.backbone import load_backbone, unknown_story_words
    from core.cache import Cache

    torch.set_flush_denormal(True)
    backbone, cache = None, None
    for line in packs:
        order = json.loads(line)
        specs = [TrialSpec.from_json(values) for values in order["specs"]]
        if backbone is None:
            started = time.monotonic()
            try:
                backbone = load_backbone(specs[0].backbone, order["device"], specs[0].precision, specs[0].weights)
            except ValueError as refusal:
                _send(events, None, "refused", message=str(refusal))
                return
            cache = Cache(Path(order["cache"]))
            unknown = unknown_story_words(backbone, [scene.prompt for scene in specs[0].story.scenes])
            _send(events, None, "ready", device=str(backbone.device), seconds=time.monotonic() - started,
                  threads=torch.get_num_threads(), unknown_words=unknown)
        for spec, path in zip(specs, order["folders"], strict=True):
            folder = TrialFolder(Path(path))
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.events.unlink(missing_ok=True)

            def report(event: str, number: int = spec.number, folder: TrialFolder = folder, **facts: Any) -> None:
                _send(events, folder.events, event, number=number, **facts)

            report("started")
            result = _attempt(spec, backbone, cache, folder, report)
            report("finished", state=result.state, reason=result.reason)


def _packs(stdin: TextIO) -> Iterator[str]:
    """Lines as they come. Once the driver is gone nobody waits for this trial: the process ends in the middle of it,
    so that it never writes into a folder that the next driver's worker has taken over."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def _attempt(spec: TrialSpec, backbone: Any, cache: Any, folder: TrialFolder, report: Any) -> Result:
    """Run a trial; whatever goes wrong in it becomes its failed result."""
    from sweep.trial import run_trial

    started = time.monotonic()
    try:
        return run_trial(spec, backbone, cache, folder, report)
    except Exception as error:
        reason = _reason(error)
        result = Result(state="failed", spec=spec, reason=reason, message=_first_line(error),
                        duration_s=time.monotonic() - started)
        if reason == "bug":  # the others are explained by their message
            log.exception("trial %d failed", spec.number)
            write_text(folder.path / "traceback.txt", traceback.format_exc())
        write_json(folder.result, result.to_json())
        return result


def _reason(error: Exception) -> str:
    """The class of a failure, by what was raised."""
    import torch

    from core.score import NoScoreError
    from core.train import NanLossError
    from sweep.trial import BlackPicturesError, NoImagesError

    classes = {NanLossError: "nan_loss", NoImagesError: "no_images", BlackPicturesError: "black_pictures",
               NoScoreError: "black_pictures", torch.cuda.OutOfMemoryError: "cuda_oom", MemoryError: "host_oom"}
    return next((reason for kind, reason in classes.items() if isinstance(error, kind)), "bug")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:500] or type(error).__name__


def _send(events: TextIO, journal: Path | None, event: str, **facts: Any) -> None:
    line = json.dumps({"event": event, "time": time.time(), **facts}) + "\n"
    if journal:
        with journal.open("a", encoding="utf-8") as handle:
            handle.write(line)
    events.write(line)
    events.flush()


def _quiet_libraries() -> None:
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


if __name__ == "__main__":
    main()
