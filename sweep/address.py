"""Addresses: a place on the disk as one, and what people may see of any."""
import re
from pathlib import Path
from urllib.parse import urlsplit

from core.errors import UserError

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
NOT_SHOWN = "(not shown: it may hold a secret)"
_SCHEME = re.compile(rf"({'|'.join(SCHEMES)})(\+[a-z0-9_]+)?")
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])?(:[0-9]{1,5})?")
_PATH = re.compile(r"(/[\w.,~+/-]*)?")


def sqlite_address(file: Path) -> str:
    """What SQLAlchemy, and so Optuna and MLflow, call a file, whatever characters its path has. Raises UserError."""
    from sqlalchemy import URL  # a fifth of a second, which --help need not wait for

    # By the driver's full name: MLflow 3.17 takes what follows a plain sqlite:/// for a path and would make a folder a%3Fb
    # beside a?b (store/db/utils.py).
    url = URL.create("sqlite+pysqlite", database=str(file.resolve()))
    try:
        return url.render_as_string(hide_password=False)
    except UnicodeEncodeError:
        raise UserError(f"{str(file)!a}: this path is not UTF-8, and no address can hold it; rename the folder") from None


def sqlite_file(address: str) -> Path | None:
    """The file that an address of SQLite's names; None if it names none."""
    from sqlalchemy import make_url

    url = make_url(address)
    plain = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:") and "uri" not in url.query
    return Path(str(url.database)) if plain else None


def shown_address(address: str) -> str:
    """Scheme, host, port and path, and of these only what is plainly one: anything else may be a secret that was put there."""
    scheme, mark, rest = address.strip().partition("://")
    if not mark or not _SCHEME.fullmatch(scheme.lower()):
        return NOT_SHOWN
    rest = re.split(r"[?#]", rest)[0] if scheme.startswith("sqlite") else rest
    if scheme.startswith("sqlite"):  # no host: all is path
        return f"{scheme}://{rest}" if rest.startswith("/") else f"{scheme}://..."
    place = re.split(r"[/?#]", rest)[0]
    path = re.split(r"[?#]", rest.removeprefix(place))[0]
    host = place.rpartition("@")[2]
    if "@" in rest.removeprefix(place) or not _HOST.fullmatch(host):  # an @ further on: a password may reach up to there
        return f"{scheme}://..."
    return f"{scheme}://{host}{path if _PATH.fullmatch(path) else '/...'}"


def server_problem(address: str) -> str | None:
    """Why no server can be at an http address, in words that hold nothing of it."""
    try:
        parts = urlsplit(address)
        port_is_known = parts.port is None or parts.port > 0
    except ValueError:
        return "whose host or port is none"
    if "@" in address.removeprefix(f"{parts.scheme}://{parts.netloc}"):
        return "with an @ behind its host: in a user's name and password write / as %2F, ? as %3F, # as %23 and @ as %40"
    if not parts.hostname or not port_is_known or not _HOST.fullmatch(parts.netloc.rpartition("@")[2]):
        return "whose host or port is none"
    if parts.query or parts.fragment:
        return "which goes on with ? or #: MLflow cannot use that (a token goes into MLFLOW_TRACKING_TOKEN)"
    return None
