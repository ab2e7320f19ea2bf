"""Fetch the missing weights of Kolors from ModelScope: announced, resumed, verified; imports no torch.

ModelScope's own client does the work (modelscope_hub, which modelscope delegates to; checked in 0.5.1). It
writes `NAME.incomplete` beside the target, resumes it with a Range request in this process or the next,
compares size and sha256 with the server's listing, and only then renames: a file under its final name is
complete. Its environment variables apply: MODELSCOPE_ENDPOINT (another server), MODELSCOPE_API_TOKEN,
MODELSCOPE_DOWNLOAD_MAX_RETRIES.
"""

import argparse
import contextlib
import logging
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
from modelscope_hub import HubApi, HubConfig, ProgressCallback
from modelscope_hub.errors import (
    APIError,
    FileIntegrityError,
    FileSizeMismatchError,
    HubError,
    NetworkError,
    NotExistError,
)
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from core.errors import LoraSweepError, UserError
from core.files.files import write_json
from core.files.weight_files import FOLDER_VARIABLE, WeightFile
from core.kolors.files import (
    FOLDERS,
    RECORD,
    REVISION,
    describe_missing,
    missing_files,
    models_folder,
    read_record,
)

FILES_AT_ONCE = 4
ELSEWHERE = f"another folder with --to, {FOLDER_VARIABLE} or the study's key weights"


class DownloadError(LoraSweepError):
    """The server or the network failed; the message has the reason, what is missing, and how to resume."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A missing file as the server lists it; `commit` is the last one that changed it."""

    weight: WeightFile
    size_bytes: int
    sha256: str | None
    commit: str | None


def fetch_missing(
    folder: Path, announce: Callable[[str], None], progress: Callable[[int, int], None]
) -> None:
    """Fetch what is missing under `folder`.

    `announce` is called with lines for the user, `progress` with (done, total) in bytes. Safe to interrupt
    and to repeat: complete files are kept, partial ones resumed. A second process waits for the first. Raises
    UserError (folder not writable, disk too small) or DownloadError.
    """
    if not missing_files(folder):
        return
    with _lock(folder, announce):
        # a new config reads the environment now; the client's default did so only once
        api = HubApi(config=HubConfig())
        try:
            _fetch_all(api, folder, announce, progress)
        except DownloadError as error:
            missing = describe_missing(missing_files(folder), folder)
            raise DownloadError(f"{_host(api)}: {error}; {missing}") from None


def _fetch_all(
    api: HubApi, folder: Path, announce: Callable[[str], None], progress: Callable[[int, int], None]
) -> None:
    """Look up what is missing, announce it, and fetch it. Raises as `fetch_missing`."""
    listed: list[Listed] = []
    for model, files in groupby(missing_files(folder), key=lambda file: file.model):
        listed += _ask(api, model, list(files), folder)
    total_bytes = sum(one.size_bytes for one in listed)
    here_bytes = sum(_incomplete_bytes(folder / one.weight.path) for one in listed)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < total_bytes - here_bytes:
        raise UserError(
            f"{folder}: Kolors' weights need {decimal(total_bytes - here_bytes)} more, but only "
            f"{decimal(free_bytes)} are free there; make room, or name {ELSEWHERE}"
        )
    begun = f", {decimal(here_bytes)} of it are here already" if here_bytes else ""
    files_named = f"{len(listed)} file{'s' if len(listed) > 1 else ''}"
    announce(
        f"fetching {files_named} of Kolors, {decimal(total_bytes)}, from {_host(api)} "
        f"into {folder}{begun} ({decimal(free_bytes)} free there); safe to interrupt, the same command "
        f"goes on"
    )
    done_bytes: Counter[str] = Counter()  # by file
    for _, group in groupby(listed, key=lambda one: one.weight.model):
        _fetch(api, list(group), folder, done_bytes, lambda: progress(done_bytes.total(), total_bytes))


def _lock(folder: Path, announce: Callable[[str], None]) -> contextlib.AbstractContextManager[object]:
    """Wait until no other process fetches into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".download.lock")
        try:
            return lock.acquire(timeout=0)
        except filelock.Timeout:
            announce(f"another process is fetching into {folder}; waiting for it")
            return lock.acquire()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name {ELSEWHERE}") from None


def _ask(api: HubApi, model: str, files: Sequence[WeightFile], folder: Path) -> list[Listed]:
    """Look up these files of one repository on the server. Raises DownloadError."""
    try:
        # The raw listing: the client's FileInfo drops `Revision`, the commit.
        listing = api.legacy.list_repo_files(model, "model", REVISION)
        entries = {str(entry.get("Path")): entry for entry in listing}
    except (HubError, OSError) as error:
        raise DownloadError(f"{model}: {_reason(error)}") from None
    found = {file.file: _listed(file, entries) for file in files}
    if lost := [name for name, one in found.items() if one is None]:
        raise DownloadError(f"{model}: the server lists no {', '.join(lost)}, or an empty one")
    listed = [one for one in found.values() if one]
    pins = {path: known.get("sha256") for path, known in read_record(folder).items()}
    if other := [one.weight.file for one in listed if pins.get(one.weight.path) not in (None, one.sha256)]:
        raise DownloadError(
            f"{model}: the server's {', '.join(other)} is no longer what was fetched here before (sha256); "
            f"to take the new one, delete {folder / RECORD}"
        )
    return listed


def _listed(file: WeightFile, entries: Mapping[str, dict[str, Any]]) -> Listed | None:
    """The first of the file's variants that the server lists."""
    for one in file.variants:
        entry = entries.get(one.file, {})
        if entry.get("Size"):
            return Listed(one, int(entry["Size"]), entry.get("Sha256"), entry.get("Revision"))
    return None


def _fetch(
    api: HubApi,
    listed: Sequence[Listed],
    folder: Path,
    done_bytes: Counter[str],
    progressed: Callable[[], None],
) -> None:
    """Fetch files of one repository into their folder, and record them. Raises DownloadError."""
    model = listed[0].weight.model
    entries = [{"Path": one.weight.file, "Size": one.size_bytes, "Sha256": one.sha256} for one in listed]
    try:
        while True:
            before_bytes = done_bytes.total()
            try:
                with _client_silenced():
                    api.download_repo(
                        model,
                        "model",
                        revision=REVISION,
                        local_dir=folder / FOLDERS[model],
                        file_list=entries,
                        max_workers=FILES_AT_ONCE,
                        progress_callbacks=[_counting(done_bytes, progressed)],
                    )
                return
            except (HubError, OSError) as error:
                failed = getattr(error, "failed_files", None) or {model: error}
                # The client gives up on a file after an hour or a few retries; retry while bytes arrive.
                cut = all(isinstance(cause, NetworkError) for cause in failed.values())
                if not cut or done_bytes.total() <= before_bytes:
                    reasons = (f"{name}: {_reason(cause)}" for name, cause in failed.items())
                    raise DownloadError("; ".join(reasons)) from None
    finally:
        _record(listed, folder)


@contextlib.contextmanager
def _client_silenced() -> Iterator[None]:
    """Let only the client's warnings through: its bars have no switch, its errors may quote signed URLs."""
    log = logging.getLogger("modelscope_hub.download")
    log.addFilter(_is_warning)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        log.removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING


def _record(listed: Sequence[Listed], folder: Path) -> None:
    """Record the server's facts on the files that are here now, which later starts compare the files with."""
    fetched = {
        one.weight.path: {
            "model": one.weight.model,
            "file": one.weight.file,
            "revision": REVISION,
            "commit": one.commit,
            "size_bytes": one.size_bytes,
            "sha256": one.sha256,
        }
        for one in listed
        if (folder / one.weight.path).exists()
    }
    if fetched:
        write_json(folder / RECORD, read_record(folder) | fetched)


def _counting(done_bytes: Counter[str], progressed: Callable[[], None]) -> type[ProgressCallback]:
    """The callback class: the client makes one for each attempt at a file, in several threads."""
    lock = threading.Lock()

    class Counted(ProgressCallback):
        def __init__(self, filename: str, file_size: int) -> None:
            super().__init__(filename, file_size)
            with lock:
                done_bytes[filename] = 0

        def update(self, size: int) -> None:
            with lock:
                done_bytes[self.filename] += size
                progressed()

    return Counted


def _reason(error: BaseException) -> str:
    """A message of ours: the client's may quote signed URLs, and some are in Chinese."""
    match error:
        case NotExistError():
            return "the server does not have it"
        case FileSizeMismatchError():
            return "the server sends another size than it lists"
        case FileIntegrityError():
            return "the server sends other bytes than it lists (sha256)"
        case APIError(status_code=int(status)):
            return f"the server answered {status}"
        case NetworkError():
            return "the connection failed or broke off"
        case OSError(strerror=str(message)):
            return message
    return type(error).__name__


def _host(api: HubApi) -> str:
    return urlsplit(api.legacy.endpoint).netloc.rpartition("@")[2]


def _incomplete_bytes(path: Path) -> int:
    """Size of what an interrupted download left of this file.

    The name is `_incomplete_path`'s in modelscope_hub/_download.py, 0.5.1.
    """
    half = path.with_name(path.name + ".incomplete")
    return half.stat().st_size if half.exists() else 0


def fetch_with_progress(folder: Path, out: Console) -> None:
    """`fetch_missing`, with a progress bar on a terminal, else with a line for each tenth."""
    announce = partial(out.print, markup=False, soft_wrap=True)
    if out.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task("", total=None)
            fetch_missing(folder, announce, lambda done, total: bar.update(task, completed=done, total=total))
        return
    tenths = 0

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal tenths
        if done_bytes * 10 // total_bytes > tenths:
            tenths = done_bytes * 10 // total_bytes
            announce(f"{decimal(done_bytes)} of {decimal(total_bytes)}")

    fetch_missing(folder, announce, tell)


def main() -> int:
    """Exit codes: 0 all files are here, 1 server or network failed, 2 folder not usable, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m core.kolors.download", description="Fetch the weights of Kolors that are missing."
    )
    usual = f"{FOLDER_VARIABLE}, else {models_folder()}"
    parser.add_argument("--to", metavar="DIR", default="", help=f"the models folder; default: {usual}")
    folder = models_folder(parser.parse_args().to)
    # whatever FORCE_COLOR says: only a terminal gets a bar
    out = Console(highlight=False, force_terminal=os.isatty(1))
    try:
        fetch_with_progress(folder, out)
    except LoraSweepError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    out.print(f"Kolors' weights are complete in {folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
