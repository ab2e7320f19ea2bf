"""Where the tracking store is, and how to speak of it without a secret."""
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote_plus
from urllib.request import getproxies

from core.errors import UserError
from core.folders import Runs, StudyFolder
from sweep.address import SCHEMES, server_problem, shown_address, sqlite_address, sqlite_file

VARIABLE = "MLFLOW_TRACKING_URI"
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
NO_SECRET = {"admin", "mlflow", "mysql", "postgres", "root", "user"}  # names of users that errors hold for other reasons
LONGEST_LINE = 300  # characters
_USER = re.compile(r"(?<=://)\w+(?=[:@])")
_ADDRESS = re.compile(r"[\w+.-]+://[^\s'\"<>()]+")


def tracking_uri(runs: Runs) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the SQLite store under `runs`. Raises UserError if it can never work."""
    given = os.environ.get(VARIABLE)
    if not given:
        return sqlite_address(runs.tracking_db)
    if problem := _problem(given, runs):
        raise UserError(f"{VARIABLE} is {shown_address(given)}, {problem}")
    return given


def _problem(given: str, runs: Runs) -> str | None:
    """Why MLflow cannot keep its runs there."""
    scheme, mark, _ = given.partition("://")
    kind, _, driver = scheme.partition("+")
    if not mark or kind not in SCHEMES or (driver and kind.startswith("http")):
        return f"but MLflow's runs cannot lie there (allowed: an address that starts with one of {', '.join(SCHEMES)}, then ://)"
    if kind.startswith("http"):
        problem = server_problem(given)
        return problem and f"which cannot work: an address {problem}"
    return _database_problem(given, kind, runs)


def _database_problem(given: str, kind: str, runs: Runs) -> str | None:
    import sqlalchemy

    try:
        sqlalchemy.make_url(given).get_dialect().import_dbapi()
        file = sqlite_file(given) if kind == "sqlite" else None
    except Exception as error:  # SQLAlchemy's, of whatever kind, for what it cannot read; ImportError for a missing driver
        return f"which cannot work: {plain_line(error)}"
    if kind == "sqlite" and file is None:
        return "which names no file (allowed: sqlite:///FILE)"
    if file and _is_of_optuna(file, runs):
        return "but that is a study's own database: name another file"
    return None


def _is_of_optuna(file: Path, runs: Runs) -> bool:
    """Whether it holds Optuna's tables, or will."""
    file = file.resolve()
    if file.parent.parent == runs.path.resolve() and file == StudyFolder(file.parent).db:
        return True
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'study_directions'").fetchone() is not None
    except sqlite3.Error:  # not there yet, or what is wrong with it is said where it is opened
        return False


def plain_line(error: BaseException) -> str:
    """What a library says of a failure, on one line; not if that holds any word of an address beyond what may be shown of it."""
    line = " ".join(_ADDRESS.sub(lambda found: shown_address(found[0]), str(error)).split())
    lower, words = line.casefold(), _words(line)
    secrets = _secret_words()
    if secrets & words or any(secret in lower for secret in secrets if len(secret) > 3):
        return f"{type(error).__name__}, whose text is not shown: it holds parts of an address that may be secret"
    return line[:LONGEST_LINE] or type(error).__name__


def _secret_words() -> set[str]:
    """Of the addresses and passwords in the environment, all but what may be shown."""
    addresses = [os.environ.get(VARIABLE, ""), *(proxy for proxy in getproxies().values() if "@" in proxy)]
    hidden = {word for address in addresses for word in _words(_without_plain_user(address)) - _words(shown_address(address))}
    return hidden | {word for name in SECRETS for word in _words(os.environ.get(name, ""))}


def _without_plain_user(address: str) -> str:
    return _USER.sub(lambda user: "" if user[0].casefold() in NO_SECRET else user[0], address, count=1)


def _words(text: str) -> set[str]:
    return {word for written in (text, unquote_plus(text)) for word in re.findall(r"\w+", written.casefold())}
