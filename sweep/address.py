"""Addresses: a place on the disk as one."""
from pathlib import Path


def sqlite_address(file: Path) -> str:
    """What SQLAlchemy, and so Optuna and MLflow, call a file, whatever characters its path has. Raises ValueError."""
    from sqlalchemy import URL  # a fifth of a second, which --help need not wait for

    # By the driver's full name: MLflow 3.17 takes what follows a plain sqlite:/// for a path and would make a folder a%3Fb
    # beside a?b (store/db/utils.py).
    url = URL.create("sqlite+pysqlite", database=str(file.resolve()))
    try:
        return url.render_as_string(hide_password=False)
    except UnicodeEncodeError:
        raise ValueError(f"{str(file)!a}: this path is not UTF-8, and no address can hold it; rename the folder") from None
