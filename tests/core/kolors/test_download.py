"""Kolors' weights fetched by ModelScope's real client from a small hub of our own on 127.0.0.1."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import filelock
import modelscope_hub._download
import modelscope_hub._legacy_api
import pytest

from core.files.files import read_json, sha256
from core.files.install import ROOT, python
from core.kolors.download import DownloadError, fetch_missing
from core.kolors.files import (
    FILES,
    KOLORS,
    RECORD,
    SCORER,
    SCORER_FOLDER,
    WeightFile,
    missing_files,
    models_folder,
)

UNET, SHARD = FILES[0], FILES[3]
SIZE_BYTES, HALF_BYTES = 300_000, 100_000


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was asked: (model, file, first byte, bytes sent)."""

    files: dict[tuple[str, str], bytes]
    listed: dict[tuple[str, str], dict] = field(default_factory=dict)
    gone: set[tuple[str, str]] = field(default_factory=set)
    # bytes sent before each cut, in turn
    cuts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    sent: list[tuple[str, str, int, int]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    holds: threading.Event | None = None
    url: str = ""

    def entry(self, model: str, file: str) -> dict:
        data = self.files[model, file]
        return {
            "Name": file.rpartition("/")[2],
            "Path": file,
            "Type": "blob",
            "Size": len(data),
            "Revision": "c0ffee" * 6,
            "Sha256": hashlib.sha256(data).hexdigest(),
        } | self.listed.get((model, file), {})

    def ranges(self, weight: WeightFile) -> list[tuple[int, int]]:
        return [
            (first, count)
            for model, file, first, count in self.sent
            if (model, file) == (weight.model, weight.file)
        ]


class Handler(BaseHTTPRequestHandler):
    """ModelScope's two addresses, and the store that it redirects to for large files."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.headers.append(dict(self.headers))
        address = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(address.query).items()}
        words = address.path.strip("/").split("/")
        match words:
            case ["api", "v1", "models", owner, name, "repo", "files"]:
                self._list(f"{owner}/{name}")
            case ["api", "v1", "models", owner, name, "repo"]:
                self._redirect_or_send(f"{owner}/{name}", asked["FilePath"])
            case ["store", owner, name, *rest]:
                self._send(f"{owner}/{name}", "/".join(rest), ranged=True)
            case _:
                self._refuse()

    def _list(self, model: str) -> None:
        files = [file for owner, file in self.hub.files if owner == model]
        if not files:
            return self._refuse()
        entries = [
            {"Name": "unet", "Path": "unet", "Type": "tree", "Size": 0},
            *(self.hub.entry(model, file) for file in files),
        ]
        return self._answer(
            200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode()
        )

    def _redirect_or_send(self, model: str, file: str) -> None:
        if file.endswith(".json"):  # small files come directly, and then the real hub ignores Range
            return self._send(model, file, ranged=False)
        return self._answer(302, b"", Location=f"{self.hub.url}/store/{model}/{file}?x-oss-signature=s3cret")

    def _send(self, model: str, file: str, *, ranged: bool) -> None:
        if (model, file) in self.hub.gone:
            return self._refuse()
        data = self.hub.files[model, file]
        span = self.headers.get("Range") if ranged else None
        first = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        cuts = self.hub.cuts.get((model, file), [])
        body = data[first:] if not cuts else data[first : first + cuts.pop(0)]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data) - first))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(body)
        self.hub.sent.append((model, file, first, len(body)))
        if len(body) < len(data) - first:
            if self.hub.holds:
                self.hub.holds.wait(timeout=30)
            self.close_connection = True
        return None

    def _refuse(self) -> None:
        self._answer(404, b'{"Code": 404, "Success": false, "Message": "not found"}')

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was interrupted hangs up
            super().handle_error(request, client_address)


@pytest.fixture(autouse=True)
def own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client with its files in the test's folder, a token that must stay secret, and no waits."""
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "t0ken")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "0")  # for processes that the test starts
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 0)
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.0)
    monkeypatch.setattr(modelscope_hub._legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    content = random.Random(1)
    hub = Hub(
        {(one.model, one.file): content.randbytes(SIZE_BYTES if one.size_bytes else 300) for one in FILES}
    )
    server = Server(("127.0.0.1", 0), type("OneHubsHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def fetch(folder: Path) -> tuple[list[str], list[tuple[int, int]]]:
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    fetch_missing(folder, lines.append, lambda done, total: steps.append((done, total)))
    return lines, steps


def failure(folder: Path) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert "s3cret" not in line
    assert "t0ken" not in line
    return line


def test_all_files_land_in_diffsynth_s_layout_with_the_size_announced_first(
    hub: Hub, folder: Path, capfd: pytest.CaptureFixture
) -> None:
    lines, steps = fetch(folder)
    assert missing_files(folder) == []
    for one in FILES:
        assert (folder / one.path).read_bytes() == hub.files[one.model, one.file]
    assert lines[0].startswith("fetching 12 files of Kolors, 3.0 MB, from 127.0.0.1:")
    assert steps[-1] == (10 * SIZE_BYTES + 2 * 300, 10 * SIZE_BYTES + 2 * 300)
    assert [path.name for path in folder.rglob("*.incomplete")] == []
    assert capfd.readouterr().err == ""


def test_what_was_fetched_is_recorded_as_the_server_told_it(hub: Hub, folder: Path) -> None:
    fetch(folder)
    record = read_json(folder / RECORD, dict)
    assert len(record) == len(FILES)
    assert record[UNET.path] == {
        "model": KOLORS,
        "file": UNET.file,
        "revision": "master",
        "commit": "c0ffee" * 6,
        "size_bytes": SIZE_BYTES,
        "sha256": sha256(folder / UNET.path),
    }


def test_nothing_missing_asks_nothing(hub: Hub, folder: Path) -> None:
    fetch(folder)
    asked = len(hub.headers)
    assert fetch(folder) == ([], [])
    assert len(hub.headers) == asked


def test_only_what_is_missing_is_fetched(hub: Hub, folder: Path) -> None:
    fetch(folder)
    (folder / SHARD.path).unlink()
    hub.sent.clear()
    assert "fetching 1 file of Kolors, 300.0 kB" in fetch(folder)[0][0]
    assert hub.sent == [(KOLORS, SHARD.file, 0, SIZE_BYTES)]


def test_a_file_that_shrank_since_it_was_fetched_is_fetched_again(hub: Hub, folder: Path) -> None:
    fetch(folder)
    with (folder / UNET.path).open("rb+") as handle:
        handle.truncate(HALF_BYTES)
    assert missing_files(folder) == [UNET]
    fetch(folder)
    assert (folder / UNET.path).read_bytes() == hub.files[UNET.model, UNET.file]


def test_what_was_fetched_once_pins_the_file(hub: Hub, folder: Path) -> None:
    fetch(folder)
    (folder / UNET.path).unlink()
    before = hub.files[UNET.model, UNET.file]
    hub.files[UNET.model, UNET.file] = before[::-1]
    asked = len(hub.sent)
    line = failure(folder)
    assert UNET.file in line
    assert f"delete {folder / RECORD}" in line
    assert len(hub.sent) == asked
    hub.files[UNET.model, UNET.file] = before
    fetch(folder)
    assert missing_files(folder) == []


def test_a_cut_connection_goes_on_from_the_bytes_that_came(hub: Hub, folder: Path) -> None:
    hub.cuts[KOLORS, UNET.file] = [HALF_BYTES]
    fetch(folder)
    assert hub.ranges(UNET) == [(0, HALF_BYTES), (HALF_BYTES, SIZE_BYTES - HALF_BYTES)]
    assert sha256(folder / UNET.path) == hub.entry(KOLORS, UNET.file)["Sha256"]


def test_a_dead_connection_keeps_the_half_file_for_the_next_start(hub: Hub, folder: Path) -> None:
    hub.cuts[KOLORS, UNET.file] = [HALF_BYTES, 0]
    line = failure(folder)
    assert f"{UNET.file}: the connection failed or broke off" in line
    assert missing_files(folder)[0] == UNET
    assert not (folder / UNET.path).exists()
    whole = [one for one in FILES if one not in missing_files(folder)]
    assert len(whole) == 7  # the text encoder came, and stays
    hub.sent.clear()
    lines, _ = fetch(folder)
    assert "100.0 kB of it are here already" in lines[0]
    assert hub.ranges(UNET) == [(HALF_BYTES, SIZE_BYTES - HALF_BYTES)]
    assert not set(hub.sent) & {(one.model, one.file, 0, SIZE_BYTES) for one in whole}
    assert missing_files(folder) == []


def test_the_command_goes_on_after_ctrl_c(hub: Hub, folder: Path) -> None:
    hub.cuts[KOLORS, UNET.file], hub.holds = [HALF_BYTES], threading.Event()
    command = subprocess.Popen(
        [sys.executable, "-m", "core.kolors.download", "--to", str(folder)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a CI may run us deaf to it
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    half = folder / (UNET.path + ".incomplete")
    wait_for(lambda: half.exists() and half.stat().st_size > 0)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=60)
    hub.holds.set()
    assert (command.returncode, errors) == (130, "interrupted; the same command goes on from here\n")
    assert UNET in missing_files(folder)
    kept_bytes = half.stat().st_size
    done = subprocess.run(command.args, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *_, tenth, last = done.stdout.splitlines()
    assert re.fullmatch(r"([\d.]+ MB) of \1", tenth)  # of what was left
    assert last == f"Kolors' weights are complete in {folder}"
    assert hub.ranges(UNET) == [(0, HALF_BYTES), (kept_bytes, SIZE_BYTES - kept_bytes)]
    assert missing_files(folder) == []


def wait_for(reached: Callable[[], bool]) -> None:
    """For what another process does; bounded, and looked at often."""
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_file_that_the_server_lost_is_named_with_its_path_and_the_command(hub: Hub, folder: Path) -> None:
    hub.gone.add((KOLORS, SHARD.file))
    line = failure(folder)
    assert f"{SHARD.file}: the server does not have it" in line
    assert f"in {folder}: missing {SHARD.path}, sdxl-vae-fp16-fix/" in line
    assert line.endswith(f"with: {python()} -m core.kolors.download --to {folder}")


def test_a_repository_that_is_gone_is_named(hub: Hub, folder: Path) -> None:
    hub.files = {key: data for key, data in hub.files.items() if key[0] != SCORER}
    assert f"{SCORER}: the server does not have it" in failure(folder)


def test_a_file_that_the_server_does_not_list_is_named_before_anything_is_fetched(
    hub: Hub, folder: Path
) -> None:
    del hub.files[KOLORS, SHARD.file]
    assert f"{KOLORS}: the server lists no {SHARD.file}" in failure(folder)
    assert hub.sent == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"Sha256": "0" * 64}, "the server sends other bytes than it lists (sha256)"),
        ({"Size": SIZE_BYTES + 1}, "the server sends another size than it lists"),
        ({"Size": SIZE_BYTES - 1}, "the server sends another size than it lists"),
    ],
)
def test_wrong_bytes_are_refused_and_not_kept(wrong: dict, reason: str, hub: Hub, folder: Path) -> None:
    hub.listed[KOLORS, UNET.file] = wrong
    assert f"{UNET.file}: {reason}" in failure(folder)
    assert UNET in missing_files(folder)
    assert list((folder / UNET.path).parent.iterdir()) == []


def test_no_network_names_every_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    line = failure(folder)
    assert line.startswith(f"127.0.0.1:9: {KOLORS}: the connection failed")
    assert all(one.path in line for one in FILES)


def test_pickled_scorer_weights_serve_where_safetensors_are_not_listed(hub: Hub, folder: Path) -> None:
    hub.files[SCORER, "pytorch_model.bin"] = hub.files.pop((SCORER, "model.safetensors"))
    fetch(folder)
    assert missing_files(folder) == []
    assert FILES[-1].find(folder) == folder / SCORER_FOLDER / "pytorch_model.bin"


def test_a_full_disk_is_told_before_anything_is_fetched(hub: Hub, folder: Path) -> None:
    hub.listed[KOLORS, UNET.file] = {"Size": 10**18}
    with pytest.raises(
        ValueError, match=r"Kolors' weights need 1\.0 EB more, but only .* free there; make room"
    ):
        fetch(folder)
    assert hub.sent == []


def test_a_folder_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ValueError, match="models: cannot be written"):
        fetch(tmp_path / "models")


def test_a_second_process_waits_and_finds_all_done(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    held = filelock.FileLock(folder / ".download.lock")
    held.acquire()
    waits = threading.Event()
    second = threading.Thread(
        target=lambda: fetch_missing(folder, lambda line: waits.set(), lambda done, total: None)
    )
    second.start()
    assert waits.wait(timeout=30)
    for one in FILES:
        (folder / one.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / one.path).write_bytes(b"fetched by the first")
    held.release()
    second.join(timeout=30)
    assert not second.is_alive()
    assert hub.sent == []


def test_the_token_goes_to_the_hub_and_into_no_log(
    hub: Hub, folder: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    hub.gone.add((KOLORS, SHARD.file))
    failure(folder)
    assert any(headers.get("Authorization") == "Bearer t0ken" for headers in hub.headers)
    told = "".join(capfd.readouterr()) + caplog.text
    assert "t0ken" not in told
    assert "s3cret" not in told


def test_empty_files_count_as_missing_and_the_folder_is_chosen_by_word_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / UNET.path).parent.mkdir(parents=True)
    (tmp_path / UNET.path).touch()
    assert missing_files(tmp_path, ["unet"]) == [UNET]
    (tmp_path / UNET.path).write_bytes(b"x")
    assert missing_files(tmp_path, ["unet"]) == []
    monkeypatch.delenv("LORA_SWEEP_MODELS", raising=False)
    assert models_folder().parts[-2:] == ("lora-sweep", "models")
    monkeypatch.setenv("LORA_SWEEP_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    assert models_folder("~/kolors") == Path.home() / "kolors"


def test_fetching_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, core.kolors.download; print('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "False", done.stderr
