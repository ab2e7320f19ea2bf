"""The driver's end of a worker on this machine: a child process in a session of its own."""
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from core.settings import TrialSpec


class WorkerDied(RuntimeError):
    """The worker is gone; the message says how."""


class LocalWorker:
    """Starts at once, so that its imports run while the driver does other things. Use as a context manager.

    In a process session of its own: Ctrl-C reaches only the driver, which then decides.
    """

    def __init__(self, log: Path, cache: Path, device: str) -> None:
        self._cache, self._device = cache, device
        with log.open("ab") as handle:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweep.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=handle,
                text=True, encoding="utf-8", start_new_session=True, env=_environment(),
            )

    def send(self, pack: list[TrialSpec], folders: list[Path]) -> None:
        """Hand over a pack of trials. Raises WorkerDied."""
        order = {"specs": [spec.to_json() for spec in pack], "folders": [str(folder) for folder in folders],
                 "cache": str(self._cache), "device": self._device}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._obituary()) from None

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come. Raises WorkerDied when there will be no more."""
        assert self._process.stdout
        for line in self._process.stdout:
            yield json.loads(line)
        raise WorkerDied(self._obituary())

    def close(self) -> None:
        """End the worker's whole process group."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it went by itself in this moment
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(BrokenPipeError):  # an order that the dead worker never read
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _obituary(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"the worker was killed by {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"


def _environment() -> dict[str, str]:
    """The child's: no hub access behind the user's back, this checkout importable."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
