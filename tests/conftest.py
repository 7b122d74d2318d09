"""What several tests share."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ikmlib.models import Architecture
from ikmlib.study import Run


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, in the place of the project's `results/`."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("IKM_RESULTS", str(folder))
    return folder


TINY = Architecture(blocks=1, depths=(1, 1), channels=8, growth=4)


def tiny(seed=0, updates=6, attention="ikm"):
    """A run of a fraction of a second."""
    return Run("smoke", replace(TINY, attention=attention), 2, seed, updates, 2, 8, ("embedded-train",))
