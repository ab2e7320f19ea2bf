"""Checks before a sweep starts, and the download of missing weights."""

from importlib import import_module
from pathlib import Path

from core.base_models import base_model
from core.data.hub import check_loader, is_here
from core.errors import UserError
from core.files.install import fetch_command
from core.folders import Runs
from sweep.plan.machine import NotKnown, refusal
from sweep.plan.outlook import Outlook, look_ahead
from sweep.process.console import out, say
from sweep.resume.fingerprint import check_changes
from sweep.study.study import Study
from sweep.tracking.uri import tracking_place


def check_place(study: Study, runs: Path, device: str) -> None:
    """Check tracking place and device, before anything is downloaded. Raises UserError."""
    tracking_place(Runs(runs))
    try:
        why = refusal(study.backbone, device, study.precision)
    except NotKnown as unknown:
        why = ""
        say(
            f"note: whether {study.backbone} can train on this machine is not known ({unknown}); going on "
            "without knowing"
        )
    if why:
        model = base_model(study.backbone)
        folder = model.weights_folder(study.weights)
        if model.download and model.files.missing_files(folder):
            why += f"; nothing was fetched ({fetch_command(model.download, folder)} does it all the same)"
        raise UserError(why)


def check_start(study: Study, runs: Path, accept: frozenset[str]) -> Outlook | None:
    """Check the study's changes and its images, as far as that needs no model -> notes for the user.

    Raises StudyError, StoreError, NoTrialPossible, DataError. None for a data set not downloaded yet.
    """
    if not is_here(study.data.value, Runs(runs).cache):
        check_loader(study.data.value)
        return None
    check_changes(study, Runs(runs).study(study.name), accept)
    return look_ahead(study, Runs(runs))


def fetch_weights(study: Study) -> None:
    """Download the base model's missing files, with a progress bar."""
    model = base_model(study.backbone)
    folder = model.weights_folder(study.weights)
    if model.download and model.files.missing_files(folder):
        import_module(model.download).fetch_with_progress(folder, out)
