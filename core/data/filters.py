"""Data-Juicer's image filters on the audit table: same names and bounds; and `subset`, `max_images`."""

import pandas as pd

from core.trial.spec import Filters

# The filters in the order in which they are applied, each with its settings.
STAGES = {
    "subset": ("subset",),
    "image_shape_filter": ("min_width", "max_width", "min_height", "max_height"),
    "image_aspect_ratio_filter": ("min_ratio", "max_ratio"),
    "image_size_filter": ("min_size", "max_size"),
    "image_aesthetics_filter": ("min_score", "max_score"),
    "image_deduplicator": ("deduplicate",),
    "max_images": ("max_images",),
}

# stages that need no score
BEFORE_SCORING = ("subset", "image_shape_filter", "image_aspect_ratio_filter", "image_size_filter")
OPEN = Filters(min_ratio=0.0, max_ratio=float("inf"), deduplicate="none")


def why_dropped(table: pd.DataFrame, filters: Filters) -> pd.Series:
    """For each row of the audit table its `problem` or the first filter that drops it; empty if kept."""
    reasons = table["problem"].fillna("").astype(str).copy()

    def drop(mask: pd.Series, reason: str) -> None:
        reasons[mask.fillna(False).astype(bool) & (reasons == "")] = reason

    if filters.subset is not None:
        drop(table["subset"] != filters.subset, "subset")
    drop((table["width"] < filters.min_width) | (table["height"] < filters.min_height), "image_shape_filter")
    if filters.max_width is not None:
        drop(table["width"] > filters.max_width, "image_shape_filter")
    if filters.max_height is not None:
        drop(table["height"] > filters.max_height, "image_shape_filter")
    drop(~table["ratio"].between(filters.min_ratio, filters.max_ratio), "image_aspect_ratio_filter")
    drop(table["size"] < filters.min_size, "image_size_filter")
    if filters.max_size is not None:
        drop(table["size"] > filters.max_size, "image_size_filter")
    drop(
        ~(table["score"] / 10).clip(0, 1).between(filters.min_score, filters.max_score),
        "image_aesthetics_filter",
    )
    if filters.deduplicate != "none":
        kept = table[reasons == ""]
        duplicates = kept[kept[filters.deduplicate].duplicated()].index
        drop(table.index.to_series().isin(duplicates), "image_deduplicator")
    if filters.max_images is not None:
        kept = table[reasons == ""].sort_values(["score", "file"], ascending=[False, True], kind="stable")
        drop(table.index.to_series().isin(kept.index[filters.max_images :]), "max_images")
    return reasons


def select(table: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The rows that the filters keep, in the table's order."""
    return table[why_dropped(table, filters) == ""]


def left_after(reasons: pd.Series) -> dict[str, int]:
    """How many images are left after each stage; the first, `problem`, drops those that cannot be used."""
    gone = reasons[reasons != ""]
    left = len(reasons) - int((~gone.isin(list(STAGES))).sum())
    counts = {"problem": left}
    for stage in STAGES:
        left -= int((gone == stage).sum())
        counts[stage] = left
    return counts
