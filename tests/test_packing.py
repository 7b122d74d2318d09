"""Packs: whole, bounded, checked, and never worse than what is there."""
import hashlib
import io
import time
import zipfile

import pytest
import torch
from conftest import tiny

from ikmlib import packing, study
from ikmlib.config import PROFILES

SMOKE = PROFILES["smoke"]


@pytest.fixture
def two_runs(results):
    """One finished and one unfinished run."""
    finished, unfinished = tiny(), tiny(seed=1, updates=500)
    study.train(finished, show=False)
    study.train(unfinished, show=False, deadline=time.monotonic() + 0.5)
    assert (unfinished.folder / "checkpoint.pt").exists()
    return finished, unfinished


def test_packed_runs_arrive_whole_and_continue(two_runs, tmp_path, monkeypatch):
    finished, unfinished = two_runs
    monkeypatch.setattr(packing, "PACK_BYTES", 20_000)
    parts, left_out = packing.pack(SMOKE, tmp_path / "parts")
    assert 1 < len(parts) <= 8 and not left_out and all(part.stat().st_size <= 20_000 for part in parts)
    before = {path.name: path.read_bytes() for path in finished.folder.glob("[!.]*")}
    updates = packing._updates(unfinished.folder / "checkpoint.pt")
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "elsewhere"))
    packing.unpack(reversed(parts))
    assert {path.name: path.read_bytes() for path in finished.folder.glob("[!.]*")} == before
    assert packing._updates(unfinished.folder / "checkpoint.pt") == updates > 0
    assert packing.unpack(parts) == []   # nothing to add a second time


def test_unpack_keeps_what_is_further(two_runs, tmp_path):
    finished, unfinished = two_runs
    parts, _ = packing.pack(SMOKE, tmp_path)
    (finished.folder / "scores.csv").write_text("mine\n")
    state = torch.load(unfinished.folder / "checkpoint.pt", weights_only=True)
    state["progress"]["update"] += 1
    torch.save(state, unfinished.folder / "checkpoint.pt")
    assert packing.unpack(parts) == []
    assert (finished.folder / "scores.csv").read_text() == "mine\n"


def test_what_finds_no_room_is_named(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PACK_BYTES", 2_000)
    parts, left_out = packing.pack(SMOKE, tmp_path)
    assert len(parts) <= 8 and left_out and not any(name.endswith((".json", ".csv")) for name in left_out)


def test_bad_packs_are_refused(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PACK_BYTES", 20_000)
    parts, _ = packing.pack(SMOKE, tmp_path)
    with pytest.raises(ValueError, match="missing, damaged"):
        packing.unpack(parts[:-1])
    (tmp_path / "profile.part").write_bytes(b"")
    with pytest.raises(ValueError, match="missing, damaged.*profile.part"):
        packing.unpack([tmp_path / "profile.part"])
    parts[0].write_bytes(b"x" + parts[0].read_bytes()[1:])
    with pytest.raises(ValueError, match="missing, damaged"):
        packing.unpack(parts)


def test_packs_hold_runs_only(results, tmp_path):
    for name in ("smoke/runs/../../evil/run.json", "smoke/runs/a/evil.py", "other/runs/a/run.json"):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(name, "{}")
        part = tmp_path / f"runs-smoke-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}-1of1.part"
        part.write_bytes(data.getvalue())
        with pytest.raises(ValueError, match="no file of a run"):
            packing.unpack([part])
