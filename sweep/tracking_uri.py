"""Where the tracking store is, and how to say so without its password."""
import os
import re

from core.folders import Runs
from sweep.address import sqlite_address

VARIABLE = "MLFLOW_TRACKING_URI"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(runs: Runs) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the SQLite store under `runs`. Raises ValueError if it can never work."""
    given = os.environ.get(VARIABLE)
    if not given:
        return sqlite_address(runs.tracking_db)
    scheme = given.partition(":")[0].partition("+")[0].lower()  # postgresql+psycopg is postgresql
    if "://" not in given or scheme not in SCHEMES:
        raise ValueError(f"{VARIABLE} is {masked(given)!r}, but MLflow's runs cannot lie there "
                         f"(allowed: a URI that starts with one of {', '.join(SCHEMES)})")
    return given


def masked(text: str) -> str:
    """The same words without a URI's user and password."""
    return re.sub(r"://[^/\s]*@", "://***@", text)
