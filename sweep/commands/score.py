"""The aesthetic scores of the images of a folder."""

from functools import partial
from pathlib import Path

from core.base_models import BASE_MODELS, DEFAULT
from core.data.image import ENDINGS, ImageError, ask, open_image
from core.errors import UserError
from core.files.files import read_json
from core.trial.recipe import recipe_backbone
from sweep.process.console import say, warn


def score_folder(folder: Path, backbone: str | None, device: str) -> None:
    """Print each image's score and their mean, without unreadable images. Raises UserError.

    In the folder of a trial or an export, the images of the story are scored, by the scorer of that trial
    unless `backbone` names another.
    """
    backbone = backbone or _backbone_of(folder) or _backbone_of(folder.parent) or DEFAULT
    if (folder / "recipe.json").exists() and (folder / "story").is_dir():
        folder = folder / "story"
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(f"{folder}: holds no image (png, jpg, webp and others)")

    from core.backbone.backbone import load_backbone
    from core.story.score import Rating, rate, score_of

    loaded = load_backbone(backbone, device, "fp32", parts=["scorer"])
    ratings: dict[str, Rating] = {}
    for path in files:
        try:
            ratings[path.name] = ask(partial(rate, loaded), open_image(path, partial(_warn_of, path)))
        except ImageError as error:
            warn(f"{path}: left out, {error}")
    if not ratings:
        raise UserError(f"{folder}: none of its {len(files)} images can be read")
    result = score_of(list(ratings.values()))
    for name, value in zip(ratings, result.aesthetic, strict=True):
        say(f"{value:6.3f}  {name}")
    say(
        f"{result.mean:6.3f}  mean of {len(ratings)} by {loaded.model.scorer}; coherence "
        f"{result.coherence:.3f}"
    )


def _backbone_of(folder: Path) -> str | None:
    """The backbone that recipe.json in a trial's or an export's folder names; None without such a file."""
    try:
        named = recipe_backbone(read_json(folder / "recipe.json", dict[str, object]))
    except (OSError, ValueError, KeyError):
        return None
    return named if named in BASE_MODELS else None


def _warn_of(path: Path, text: str) -> None:
    warn(f"{path}: {text}")
