"""The store that MLflow keeps its runs in, and a study's experiment there: found, or made."""

import logging
from pathlib import Path

import filelock
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME

from core.errors import UserError
from core.files.files import write_whole
from core.folders import Runs
from sweep.tracking.moved_store import mend_artifact_places
from sweep.tracking.uri import VARIABLE, TrackingPlace, plain_line, shown_address, sqlite_address

log = logging.getLogger(__name__)
LOCK_S = 60.0
# Without a kind MLflow 3.17's pages (server/js, ExperimentKind) open in the view for chat models, where runs
# are hard to find.
EXPERIMENT_TAGS = {
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: "aesthetic_mean",
    "mlflow.experimentKind": "custom_model_development",
}


class TrackingError(UserError):
    """A problem that only the user can solve: a tracking URI that cannot work, or a deleted experiment."""


def open_experiment(runs: Runs, study: str, place: TrackingPlace) -> tuple[MlflowClient, str]:
    """The client, and the id of the study's experiment with our tags. Raises TrackingError."""
    try:
        client = _open_store(runs, place)
        return client, _find_experiment(client, runs, study, place)
    except (ImportError, sqlalchemy.exc.ArgumentError, InvalidUrlException) as error:
        raise TrackingError(
            f"{VARIABLE} is {shown_address(place.uri)}, which cannot work: {plain_line(error)}"
        ) from None


def store_id(client: MlflowClient) -> int | None:
    """When the store was created, in ms: identifies it though its address may change. None if unknown."""
    try:
        return client.get_experiment("0").creation_time  # MLflow makes it together with its tables
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _open_store(runs: Runs, place: TrackingPlace) -> MlflowClient:
    """One process at a time creates it: MLflow 3.17 fails when several find the same database empty."""
    runs.path.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(runs.tracking_lock, timeout=LOCK_S):
        database = runs.tracking_db
        if place.kind == "own" and not database.exists():
            # left, as its journal, by a process that was killed
            for half in database.parent.glob(f".{database.name}.*"):
                half.unlink()
            write_whole(database, _make_store)
        if (
            place.file
            and place.file.resolve() == database.resolve()
            and (moved := mend_artifact_places(runs))
        ):
            log.warning(moved)
        return MlflowClient(place.uri)


def _make_store(path: Path) -> None:
    """Create MLflow's tables in a new file; no connection to it stays open."""
    # imported here as it takes half a second and only a new runs folder needs it
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = sqlite_address(path)
    try:
        MlflowClient(uri)
    finally:
        # MLflow 3.17 keeps its connections to a URI for good (store/tracking/sqlalchemy_store.py): after a
        # disk that was full, every later try would write to the half file that is deleted by then.
        engine = SqlAlchemyStore._engine_map.pop(uri, None)
        if engine:
            engine.dispose()


def _find_experiment(client: MlflowClient, runs: Runs, study: str, place: TrackingPlace) -> str:
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        # a server has an artifact folder of its own
        artifacts = None if place.kind == "server" else runs.artifacts.resolve().as_uri()
        return client.create_experiment(study, artifacts, EXPERIMENT_TAGS)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow's experiment {study!r} was deleted: restore it there, "
            f"purge it (mlflow gc), or give the study another name"
        )
    for key, value in EXPERIMENT_TAGS.items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id
