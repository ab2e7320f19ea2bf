"""Where MLflow keeps its runs: the only parser of MLFLOW_TRACKING_URI; and how to show an address without its
secrets.
"""

import os
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, unquote_plus, urlsplit
from urllib.request import getproxies

from core.errors import UserError
from core.folders import Runs, StudyFolder

VARIABLE = "MLFLOW_TRACKING_URI"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# common user names, which errors may contain for other reasons
NO_SECRET = {"admin", "mlflow", "mysql", "postgres", "root", "user"}
NOT_SHOWN = "(not shown: it may hold a secret)"
LONGEST_LINE = 300  # characters
_SCHEME = re.compile(rf"({'|'.join(SCHEMES)})(\+[a-z0-9_]+)?")
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])?(:[0-9]{1,5})?")
_PATH = re.compile(r"(/[\w.,~+/-]*)?")
_USER = re.compile(r"(?<=://)\w+(?=[:@])")
_ADDRESS = re.compile(r"[\w+.-]+://[^\s'\"<>()]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingPlace:
    """Where MLflow keeps its runs: in the runs folder's own SQLite file, or where MLFLOW_TRACKING_URI says.

    `uri` may hold a password and must not be shown; `server` is an http address without user and password.
    """

    uri: str = field(repr=False)
    kind: Literal["own", "file", "database", "server"]
    file: Path | None = None  # own and file: SQLite's
    server: str = ""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    host: str | None = None  # of a database
    port: int | None = None


class _Problem(Exception):
    """Why MLflow cannot keep its runs at an address; the message holds no secret of it."""


def tracking_place(runs: Runs) -> TrackingPlace:
    """The place that MLFLOW_TRACKING_URI names if it is set, else the SQLite file under `runs`. Raises
    UserError if the variable can never work.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return TrackingPlace(uri=sqlite_address(runs.tracking_db), kind="own", file=runs.tracking_db)
    try:
        return _parsed(given, runs)
    except _Problem as problem:
        raise UserError(f"{VARIABLE} is {shown_address(given)}, {problem}") from None


def shown_place(runs: Runs) -> str | Path:
    """The tracking place as it may be shown to people; raises nothing if it cannot work."""
    given = os.environ.get(VARIABLE)
    return shown_address(given) if given else runs.tracking_db


def _parsed(given: str, runs: Runs) -> TrackingPlace:
    scheme, mark, _ = given.partition("://")
    kind, _, driver = scheme.partition("+")
    if not mark or kind not in SCHEMES or (driver and kind.startswith("http")):
        raise _Problem(
            "but MLflow's runs cannot lie there (allowed: an address that starts with one of "
            f"{', '.join(SCHEMES)}, then ://)"
        )
    return _server(given) if kind.startswith("http") else _database(given, kind, runs)


def _server(given: str) -> TrackingPlace:
    none = _Problem("which cannot work: an address whose host or port is none")
    try:
        parts = urlsplit(given)
        port_is_known = parts.port is None or parts.port > 0
    except ValueError:
        raise none from None
    if "@" in given.removeprefix(f"{parts.scheme}://{parts.netloc}"):
        raise _Problem(
            "which cannot work: an address with an @ behind its host: in a user's name and password "
            "write / as %2F, ? as %3F, # as %23 and @ as %40"
        )
    host = parts.netloc.rpartition("@")[2]
    if not parts.hostname or not port_is_known or not _HOST.fullmatch(host):
        raise none
    if parts.query or parts.fragment:
        raise _Problem(
            "which cannot work: an address which goes on with ? or #: MLflow cannot use that "
            "(a token goes into MLFLOW_TRACKING_TOKEN)"
        )
    return TrackingPlace(
        uri=given,
        kind="server",
        server=f"{parts.scheme}://{host}{parts.path.rstrip('/')}",
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _database(given: str, kind: str, runs: Runs) -> TrackingPlace:
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(given)
        url.get_dialect().import_dbapi()
        file = sqlite_file(given) if kind == "sqlite" else None
    # SQLAlchemy raises errors of many kinds for a bad address; ImportError means a missing driver
    except Exception as error:
        raise _Problem(f"which cannot work: {plain_line(error)}") from None
    if kind == "sqlite" and file is None:
        raise _Problem("which names no file (allowed: sqlite:///FILE)")
    if file and _is_of_optuna(file, runs):
        raise _Problem("but that is a study's own database: name another file")
    return TrackingPlace(
        uri=given, kind="file" if file else "database", file=file, host=url.host, port=url.port
    )


def _is_of_optuna(file: Path, runs: Runs) -> bool:
    """Whether a SQLite file has Optuna's tables, or is where a study will create them."""
    file = file.resolve()
    if file.parent.parent == runs.path.resolve() and file == StudyFolder(file.parent).db:
        return True
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return (
                database.execute("SELECT 1 FROM sqlite_master WHERE name = 'study_directions'").fetchone()
                is not None
            )
    except sqlite3.Error:  # it does not exist yet, or the error is reported where it is opened
        return False


def sqlite_address(file: Path) -> str:
    """A SQLite file as a SQLAlchemy URL, for Optuna and MLflow; any characters of its path are escaped.
    Raises UserError if the path is not UTF-8.
    """
    from sqlalchemy import URL  # takes 0.2 s, which --help need not wait for

    # With the driver's name: MLflow 3.17 takes what follows a plain sqlite:/// as an unescaped path and would
    # create a folder a%3Fb beside a?b (store/db/utils.py).
    url = URL.create("sqlite+pysqlite", database=str(file.resolve()))
    try:
        return url.render_as_string(hide_password=False)
    except UnicodeEncodeError:
        raise UserError(
            f"{str(file)!a}: this path is not UTF-8, and no address can hold it; rename the folder"
        ) from None


def sqlite_file(address: str) -> Path | None:
    """The file that a SQLite URL names; None if it names none, such as :memory:."""
    from sqlalchemy import make_url

    url = make_url(address)
    plain = (
        url.get_backend_name() == "sqlite"
        and url.database not in (None, "", ":memory:")
        and "uri" not in url.query
    )
    return Path(str(url.database)) if plain else None


def shown_address(address: str) -> str:
    """An address without its secrets: scheme, host, port and path, each only if it is clearly one; anything
    else may be a misplaced password.
    """
    scheme, mark, rest = address.strip().partition("://")
    if not mark or not _SCHEME.fullmatch(scheme.lower()):
        return NOT_SHOWN
    if scheme.startswith("sqlite"):  # no host: all is path
        path = re.split(r"[?#]", rest)[0]
        return f"{scheme}://{path}" if path.startswith("/") else f"{scheme}://..."
    place = re.split(r"[/?#]", rest)[0]
    path = re.split(r"[?#]", rest.removeprefix(place))[0]
    host = place.rpartition("@")[2]
    # an @ further on: a password may reach up to there
    if "@" in rest.removeprefix(place) or not _HOST.fullmatch(host):
        return f"{scheme}://..."
    return f"{scheme}://{host}{path if _PATH.fullmatch(path) else '/...'}"


def plain_line(error: BaseException) -> str:
    """A library's error message as one line; only its class if the text holds a part of an address that may
    be secret.
    """
    line = " ".join(_ADDRESS.sub(lambda found: shown_address(found[0]), str(error)).split())
    lower, words = line.casefold(), _words(line)
    secrets = _secret_words()
    if secrets & words or any(secret in lower for secret in secrets if len(secret) > 3):
        return (
            f"{type(error).__name__}, whose text is not shown: it holds parts of an address that may be "
            "secret"
        )
    return line[:LONGEST_LINE] or type(error).__name__


def _secret_words() -> set[str]:
    """The words of the addresses and passwords in the environment that may not be shown."""
    addresses = [os.environ.get(VARIABLE, ""), *(proxy for proxy in getproxies().values() if "@" in proxy)]
    hidden = {
        word
        for address in addresses
        for word in _words(_without_plain_user(address)) - _words(shown_address(address))
    }
    return hidden | {word for name in SECRETS for word in _words(os.environ.get(name, ""))}


def _without_plain_user(address: str) -> str:
    return _USER.sub(lambda user: "" if user[0].casefold() in NO_SECRET else user[0], address, count=1)


def _words(text: str) -> set[str]:
    return {word for written in (text, unquote_plus(text)) for word in re.findall(r"\w+", written.casefold())}
