"""Repairs the tracking store of a runs folder that was moved or copied: MLflow stores absolute addresses, so
it still names the old folder.
"""

import sqlite3
from contextlib import closing

from core.folders import Runs

BUSY_S = 20.0


def mend_artifact_places(runs: Runs) -> str | None:
    """Make the artifact addresses in the store of `runs` point to this folder -> a line for the user if any
    pointed to another. Raises sqlite3.Error.

    Without it the images of a moved folder are not found, and a copy writes into the original.
    """
    if not runs.tracking_db.exists():
        return None
    here = runs.artifacts.resolve().as_uri()
    with closing(sqlite3.connect(runs.tracking_db, timeout=BUSY_S, isolation_level=None)) as store:
        named = [place for (place,) in store.execute("SELECT DISTINCT artifact_location FROM experiments")]
        moved = [
            place
            for place in named
            if place
            and place.startswith("file:")
            and place != here
            and place.endswith(f"/{runs.artifacts.name}")
            and _lies_here(store, place, runs)
        ]
        if not moved:
            return None
        store.execute("BEGIN IMMEDIATE")
        for place in moved:
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, place)
            )
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE substr(artifact_uri, 1, ?) = ?",
                (here, len(place) + 1, len(place) + 1, f"{place}/"),
            )
        store.execute("COMMIT")
    return (
        f"{runs.path} was moved or copied here: MLflow's images and LoRAs are from now on those in "
        f"{runs.artifacts}"
    )


def _lies_here(store: sqlite3.Connection, place: str, runs: Runs) -> bool:
    """Whether artifacts of the runs under the address `place` are in this folder: other programs that log to
    the same store have artifact folders of their own.
    """
    named = store.execute(
        "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(place) + 1, f"{place}/")
    )
    return any((runs.artifacts / run_id).is_dir() for (run_id,) in named)
