"""Is the tracking store reachable, and the port of `lora-sweep ui` free? Waits at most 4 s for an answer."""

import os
import socket
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path

from core.folders import Runs
from sweep.doctor.check import Check
from sweep.tracking.ui import HOST, PORT, port_taken
from sweep.tracking.uri import TrackingPlace, plain_line, shown_address, tracking_place

TIMEOUT_S = 4
UNSET = "unset MLFLOW_TRACKING_URI to keep runs under the runs folder"


def check_tracking(runs: Runs) -> Check:
    """Whether the place that MLflow's runs are written to is reachable."""
    try:
        place = tracking_place(runs)
    except ValueError as error:
        return Check("missing", str(error), UNSET)
    if place.kind == "own":
        made = "" if runs.tracking_db.exists() else ", made when a study starts"
        return Check("OK", f"{runs.tracking_db}{made}")
    if place.kind == "server":
        return _check_server(place)
    return _check_file(place.file) if place.file else _check_database(place)


def _check_server(server: TrackingPlace) -> Check:
    request = urllib.request.Request(f"{server.server}/health")
    place = shown_address(server.server)
    if server.user:
        login = f"{server.user}:{server.password}"
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            well = answer.read(16).strip() == b"OK"
    except urllib.error.HTTPError as error:
        todo = "look whether it is MLflow, and whether MLFLOW_TRACKING_USERNAME and _PASSWORD are needed"
        return Check("warn", f"{place} answers with HTTP {error.code}", todo)
    except (OSError, HTTPException) as error:
        return _unreachable(place, getattr(error, "reason", error))
    if well:
        return Check("OK", f"{place} answers")
    return Check("warn", f"{place} answers, but not as MLflow does")


def _check_file(file: Path) -> Check:
    if file.parent.is_dir() and os.access(file if file.exists() else file.parent, os.W_OK):
        return Check("OK", str(file))
    found = f"MLFLOW_TRACKING_URI names {file}, which cannot be written"
    return Check("missing", found, "make its folder, or name another file")


def _check_database(database: TrackingPlace) -> Check:
    host, port, place = database.host, database.port, shown_address(database.uri)
    if not host or not port:
        return Check("warn", f"{place}: whether it answers was not looked at")
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        return _unreachable(place, error)
    return Check("OK", f"{place} takes connections; its login was not tried")


def _unreachable(place: str, why: BaseException) -> Check:
    return Check("missing", f"{place} cannot be reached ({plain_line(why)})", f"start it, or {UNSET}")


def check_port() -> Check:
    """The port of `lora-sweep ui`; a sweep itself needs none."""
    if port_taken(HOST, PORT):
        found = f"{PORT} is in use (by another program, or by MLflow's own UI)"
        return Check("warn", found, f"lora-sweep ui --port {PORT + 1}")
    return Check("OK", f"{PORT} is free for lora-sweep ui")
