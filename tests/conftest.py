"""Fixtures for tests of the core: the tiny backbone, the demo's data and a shipped story."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from core.files.cache import Cache
from core.files.install import ROOT
from core.trial.spec import Data, Filters, Scene, Story

if TYPE_CHECKING:  # the tests of sweep and reports start without torch
    import pandas as pd

    from core.backbone.backbone import Backbone
    from core.backbone.encode import Examples

STUDIES = ROOT / "studies"
DEMO_DATA = Data(source=str(STUDIES / "data" / "watercolor"), caption="{prompt}, watercolor style")
SIZE_PX = 128


@pytest.fixture(scope="session")
def backbone() -> "Backbone":
    import torch

    from core.backbone.backbone import load_backbone

    # A second thread does not speed up toy layers; on a busy machine it makes them ten times slower.
    torch.set_num_threads(1)
    return load_backbone("tiny")


@pytest.fixture(autouse=True)
def adapters_off(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the adapters from the shared UNet after each test that used it."""
    if "backbone" not in request.fixturenames:
        yield
        return
    from core.lora import adapters

    unet = request.getfixturevalue("backbone").unet
    yield
    adapters.remove(unet)


@pytest.fixture(autouse=True)
def denormals_kept() -> Iterator[None]:
    """Undo `load_backbone`'s flushing of denormals, with which hypothesis refuses to draw floats."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def data() -> Data:
    return DEMO_DATA


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("shared_cache"))


@pytest.fixture(scope="session")
def table(backbone: "Backbone", shared_cache: Cache) -> "pd.DataFrame":
    """The audit of the demo's data, by the tiny scorer."""
    from core.data.audit import audit
    from core.story.score import score_images

    return audit(
        DEMO_DATA,
        shared_cache,
        lambda image: score_images(backbone, [image]).aesthetic[0],
        backbone.weights["scorer"],
    )


@pytest.fixture(scope="session")
def examples(backbone: "Backbone", table: "pd.DataFrame", shared_cache: Cache) -> "Examples":
    """Six training images."""
    from core.backbone.encode import encode_examples
    from core.data.filters import select

    return encode_examples(select(table, Filters(min_width=128)).head(6), SIZE_PX, backbone, shared_cache)


@pytest.fixture(scope="session")
def story() -> Story:
    """The eight scenes of the shipped Chinese story."""
    story = yaml.safe_load((STUDIES / "stories" / "lake_painter.yaml").read_text(encoding="utf-8"))
    return Story(
        title=story["title"],
        scenes=tuple(
            Scene(
                prompt=story["template"].replace("{scene}", scene["prompt"]),
                negative_prompt=story["negative_prompt"],
                seed=scene["seed"],
            )
            for scene in story["scenes"]
        ),
    )
