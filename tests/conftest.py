"""Fixtures for all tests."""
from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, in the place of the project's `results/`."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("IKM_RESULTS", str(folder))
    return folder
