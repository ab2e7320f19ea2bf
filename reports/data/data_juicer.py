"""The filters of a study as a Data-Juicer config, and its images as a data set for Data-Juicer."""

import json
from pathlib import Path

import pandas as pd
import yaml

from core.data.filters import STAGES
from core.files.files import write_text
from core.trial.spec import Filters
from reports.data.survey import Survey

# For this name Data-Juicer divides scores by ten.
SCORER = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"
HEADER = """\
# The filters of study {study} for Data-Juicer: dj-process --config {config}
# Images that cannot be read are left out of {images}.
"""
TOY = (
    "# The toy study's scores come from its own scorer: Data-Juicer's image_aesthetics_filter gives others.\n"
)


def write_data_juicer(survey: Survey, folder: Path) -> Path:
    """Write `data_juicer.yaml` (searched settings at their loosest) and `data_juicer.jsonl`."""
    folder = folder.resolve()
    config, images = folder / "data_juicer.yaml", folder / "data_juicer.jsonl"
    good = survey.table[survey.table["problem"] == ""]
    lines = [
        json.dumps(
            {
                "text": row["caption"],
                "image": [row["path"]],
                "subset": row["subset"],
                "aesthetic_score": None if pd.isna(row["score"]) else row["score"],
            },
            ensure_ascii=False,
        )
        + "\n"
        for _, row in good.iterrows()
    ]
    write_text(images, "".join(lines))
    values = {
        "project_name": survey.study,
        "dataset_path": str(images),
        "export_path": str(folder / "data_juicer_kept.jsonl"),
        "np": 1,
        "text_keys": "text",
        "image_key": "image",
        "process": process(survey.loosest),
    }
    comments = HEADER.format(study=survey.study, config=config.name, images=images.name)
    comments += "".join(
        f"# {name} is searched: {search}; here its loosest.\n" for name, search in survey.searched.items()
    )
    if survey.is_toy:
        comments += TOY
    return write_text(config, comments + yaml.safe_dump(values, allow_unicode=True, sort_keys=False))


def process(filters: Filters) -> list[dict[str, dict[str, object]]]:
    """Data-Juicer's operators in our order, named as in its docs/Operators.md; sizes are text there."""
    shape = {name: getattr(filters, name) for name in STAGES["image_shape_filter"]}
    sizes = {name: getattr(filters, name) for name in STAGES["image_size_filter"]}
    steps: list[dict[str, dict[str, object]]] = [
        {"image_shape_filter": {name: px for name, px in shape.items() if px is not None}},
        {"image_aspect_ratio_filter": {"min_ratio": filters.min_ratio, "max_ratio": filters.max_ratio}},
        {"image_size_filter": {name: str(count) for name, count in sizes.items() if count is not None}},
        {
            "image_aesthetics_filter": {
                "hf_scorer_model": SCORER,
                "min_score": filters.min_score,
                "max_score": filters.max_score,
            }
        },
    ]
    if filters.subset is not None:
        subset: dict[str, object] = {"field_key": "subset", "target_value": [filters.subset]}
        steps.insert(0, {"specified_field_filter": subset})
    if filters.deduplicate != "none":
        steps.append({"image_deduplicator": {"method": filters.deduplicate}})
    if filters.max_images is not None:
        best = {"field_key": "aesthetic_score", "topk": filters.max_images}
        steps.append({"topk_specified_field_selector": best})
    return steps
