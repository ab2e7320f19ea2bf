"""MLflow's own UI on the right store."""
import os
import socket
import sys
from collections.abc import Callable

from core.folders import Runs
from sweep.tracking_uri import VARIABLE, masked, tracking_uri

HOST, PORT = "127.0.0.1", 5000


def open_ui(runs: Runs, host: str, port: int, say: Callable[[str], None]) -> None:
    """Become MLflow's server, or say where a server that was set up is. Raises ValueError."""
    uri = os.environ.get(VARIABLE)
    if uri and uri.startswith("http"):
        say(f"your tracking server is {masked(uri)}: open it in a browser")
        return
    if not uri and not runs.tracking_db.exists():
        raise ValueError(f"{runs.path}: holds no tracking store yet (try: lora-sweep run demo)")
    if taken := port_taken(host, port):
        raise ValueError(f"--port is {port}, but {host}:{port} cannot be used ({taken}); choose another")
    say(f"MLflow on http://{host}:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    # By the environment, for a command line is public and the URI may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(runs)
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--artifacts-destination", runs.artifacts.resolve().as_uri(),
               "--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)  # the server takes this process over, and its signals with it


def port_taken(host: str, port: int) -> str | None:
    """Why nothing can listen there; None if it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
