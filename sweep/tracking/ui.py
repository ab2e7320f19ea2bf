"""Starts MLflow's own UI on the store of a runs folder."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException

from core.errors import LoraSweepError, UserError
from core.folders import Runs
from sweep.stop import stop_by_keyboard
from sweep.tracking.uri import shown_address, tracking_place

HOST, PORT = "127.0.0.1", 5000
LOOK_S, ANSWER_S = 0.3, 5.0
END_S = 3.0  # until MLflow's server, asked to end, is killed
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach a server that listens on all


class UiError(LoraSweepError):
    """MLflow's server failed; the message is one line for the user."""


def open_ui(runs: Runs, host: str, port: int, say: Callable[[str], None]) -> None:
    """Run MLflow's server until Ctrl-C, or `say` the address of the server that is configured.

    Raises UserError, UiError.
    """
    place = tracking_place(runs)
    if place.kind == "server":
        say(f"your tracking server is {shown_address(place.uri)}: open it in a browser")
        return
    if place.kind == "own" and not runs.tracking_db.exists():
        raise UserError(f"{runs.path}: holds no tracking store yet (try: lora-sweep run demo)")
    if taken := port_taken(host, port):
        raise UserError(f"--port is {port}, but {host}:{port} cannot be used ({taken}); choose another")
    stop_by_keyboard()
    say(
        f"MLflow is starting, which takes up to a minute (Ctrl-C ends it; what it says goes to {runs.ui_log})"
    )
    sys.stdout.flush()
    try:
        _serve(runs, place.uri, host, port, say)
    except KeyboardInterrupt:
        say("MLflow has ended")


def _serve(runs: Runs, uri: str, host: str, port: int, say: Callable[[str], None]) -> None:
    command = [sys.executable, "-P", "-m", "mlflow", "server"]
    # The URI is passed in the environment: every user can see a command line, and the URI may hold a
    # password. Jobs are for chat models: without them MLflow 3.17 starts in two thirds of the time and ends
    # in a fifth.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": runs.artifacts.resolve().as_uri(),
        "MLFLOW_HOST": host,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server: subprocess.Popen[bytes] | None = None
    runs.path.mkdir(parents=True, exist_ok=True)  # the store may be a database elsewhere
    with runs.ui_log.open("wb") as log:
        # Ctrl-C is blocked until `server` is assigned; in a process group of its own the server gets none.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _wait_until_it_answers(server, host, port)
            if server.poll() is None:
                say(f"MLflow on {_address(host, port)} (Ctrl-C ends it)")
                sys.stdout.flush()
            raise UiError(f"MLflow's server ended with exit code {server.wait()}; {runs.ui_log} says why")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if server:
                _end(server)


def _wait_until_it_answers(server: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Returns also if the server has ended."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        try:
            direct.open(f"{_address(ANYWHERE.get(host, host), port)}/health", timeout=ANSWER_S).close()
            break
        except urllib.error.HTTPError:  # the server answers, if with an error
            break
        except (OSError, HTTPException):
            time.sleep(LOOK_S)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its child processes; a further Ctrl-C is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def port_taken(host: str, port: int) -> str | None:
    """Why no server can listen on this port; None if it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
