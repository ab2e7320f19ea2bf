"""Places are shown as a user would type them."""

from pathlib import Path

import pytest

from core.folders import shown_path


def test_a_place_under_the_current_folder_is_shown_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "demo") == "runs/demo"
    assert shown_path(Path("runs")) == "runs"
    assert shown_path(tmp_path.parent) == str(tmp_path.parent)
