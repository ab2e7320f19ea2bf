"""What the scores of a study depend on, read from the study file and its images."""

from dataclasses import asdict
from pathlib import Path

from core.data.folder import read_folder
from core.files.files import sha256
from core.fingerprint import Fields
from core.trial.spec import Data, Filters, Rendering, Training, Value
from sweep.study.space import Choices, Range
from sweep.study.study import Study


def fixed_values(study: Study, images: dict[str, object]) -> Fields:
    """Everything in the study file that scores depend on, by field; scenes as the text encoder gets them,
    `images` as by `images_of`.
    """

    def fixed(home: str, section: Training | Rendering | Filters) -> dict[str, object]:
        return {f"{home}.{name}": value for name, value in asdict(section).items() if name not in study.space}

    scenes = {
        f"story.scenes[{number}].{key}": value
        for number, scene in enumerate(study.story.value.scenes, start=1)
        for key, value in asdict(scene).items()
    }
    captions = {"data.caption": study.data.caption, "data.min_images": study.data.min_images}
    return {
        "story": scenes,
        "data": captions | fixed("data.filters", study.data.filters) | images,
        "render": fixed("render", study.render),
        "train": fixed("train", study.train),
        "seed": {"seed": study.seed},
        "precision": {"precision": study.precision},
        "backbone": {"backbone": study.backbone},
        "gate": {"objective.gate": study.objective.gate},
    }


def images_of(data: Data) -> dict[str, object]:
    """Every image of the data set, in its order: file, caption and SHA-256, as in the audit table. Reads each
    file once.
    """
    found: dict[str, object] = {}
    listed = [image for image in read_folder(data).images if image.in_table]
    for number, image in enumerate(listed, start=1):
        facts = {"file": image.file, "caption": image.prompt, "sha256": _digest(image.path)}
        found |= {f"data.pictures[{number}].{key}": value for key, value in facts.items()}
    return found


def _digest(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else "not a file"
    except OSError:  # the audit reports the error
        return "cannot be read"


def search_kinds(study: Study) -> dict[str, object]:
    """What Optuna never changes of a searched setting: its choices in order, or the kind of its range."""

    def kind(search: Choices | Range) -> list[Value] | str:
        if isinstance(search, Choices):
            return list(search.choices)
        return "log range" if search.log else "range"

    return {name: kind(search) for name, search in study.space.items()}
