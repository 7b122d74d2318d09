"""Runs: trained once, scored once, locked, packed and moved; committed records are what their specs say."""
import fcntl
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ikmlib import config, datasets, study
from ikmlib.config import PROFILES
from ikmlib.metrics import psnr_y, ssim_y
from ikmlib.models import ARCHITECTURES, Architecture
from ikmlib.study import Run
from ikmlib.trainers import TrainingDiverged, evaluate, restored

SMOKE = PROFILES["smoke"]
TINY = Architecture(blocks=1, depths=(1, 1), channels=8, growth=4)


def tiny(seed=0, updates=6, attention="ikm"):
    return Run("smoke", replace(TINY, attention=attention), 2, seed, updates, 2, 8, ("embedded-train",))


def test_table3_is_the_whole_grid_seed_by_seed():
    runs = study.table3(PROFILES["small"])
    cells = {(run.arch.block, run.arch.attention) for run in runs[:16]}
    assert len(runs) == 48 and len(cells) == 16 and {run.seed for run in runs[:16]} == {0}
    assert len({run.id for run in runs}) == 48
    assert runs[0].id.startswith("uhdb-none-x2-seed0-")


def test_id_is_of_the_spec_alone():
    run = tiny()
    assert replace(run, profile="cpu").id == run.id
    other = replace(TINY, gradient="go")
    for change in (dict(seed=1), dict(updates=7), dict(data=("T91",)), dict(arch=other), dict(scale=3)):
        assert replace(run, **change).id != run.id


def test_slugs_are_readable():
    assert study.slug(ARCHITECTURES["uhdn_l"]) == "uhdn_l-ikm"
    assert study.slug(replace(ARCHITECTURES["rb"], attention="ca")) == "rb-ca"
    assert study.slug(replace(ARCHITECTURES["uhdn"], kernel=5, gradient="go")) == "uhdn-ikm-kernel5-gradientgo"


def test_a_run_is_trained_and_scored_once(results, monkeypatch):
    run = tiny()
    assert study.ensure([run], train_missing=False) == []
    assert study.train(run, show=False) and run.finished
    record = study.record(run)
    assert record["id"] == run.id and record["spec"] == run.spec and record["params"] == sum(
        p.numel() for p in run.build().parameters())
    for key in ("git_commit", "device", "torch", "finished_utc", "data_sha256", "updates_per_second"):
        assert record[key]
    assert not (run.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(study, "Trainer", None)   # any attempt to train again fails
    assert study.train(run) and study.ensure([run]) == [run]


def test_scores_are_of_the_saved_weights_under_both_conventions(results):
    run = tiny()
    study.train(run, show=False)
    model = run.build()
    model.load_state_dict(torch.load(run.folder / "weights.pt", weights_only=True)["model"])
    model.to(memory_format=torch.channels_last)
    images = study.test_images(SMOKE, run.data)["embedded-test"]
    found = study.scores([run]).set_index("image")
    for name, sr, hr in restored(model, images, 2):
        for rounded, suffix in ((False, ""), (True, "_rounded")):
            psnr, ssim = (metric(sr, hr, shave=2, round_y=rounded) for metric in (psnr_y, ssim_y))
            assert found.loc[name, f"psnr_y{suffix}"] == pytest.approx(psnr, abs=2e-6)
            assert found.loc[name, f"ssim_y{suffix}"] == pytest.approx(ssim, abs=2e-6)
    curve = study.curves([run])
    assert list(curve["update"]) == [2, 4, 6]
    validation = study.training_data(run.data, 2, 8, "cpu")[1]
    assert curve.psnr_y.iloc[-1] == pytest.approx(evaluate(model, validation, 2).psnr_y.mean(), abs=2e-6)


def test_interrupted_run_ends_like_an_uninterrupted_one(results, monkeypatch, tmp_path):
    torch.set_num_threads(1)
    assert not study.train(tiny(), show=False, deadline=0.0)   # time is up before the first update
    assert study.status(SMOKE).state.isin(["missing"]).all()   # not of the queue
    assert (tiny().folder / "checkpoint.pt").exists() and study.train(tiny(), show=False)
    first = study.scores([tiny()])
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "again"))
    study.train(tiny(), show=False)
    pd.testing.assert_frame_equal(first, study.scores([tiny()]))


def test_a_run_in_other_hands_is_left_alone(results):
    run = tiny()
    run.folder.mkdir(parents=True)
    with open(run.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert study.train(run, show=False) is False
    assert study.train(run, show=False)


def test_diverged_runs_are_reported_and_others_go_on(results, monkeypatch):
    good, bad = tiny(), tiny(seed=1)
    real = study.train

    def train(run, **options):
        if run == bad:
            raise TrainingDiverged("run seed1: loss nan")
        return real(run, show=False)

    monkeypatch.setattr(study, "train", train)
    with pytest.warns(UserWarning, match="loss nan"):
        assert study.ensure([bad, good]) == [good]
    monkeypatch.setattr(study, "queue", lambda profile, only: [bad, good])
    assert study.work(SMOKE, show=False) == 1


def test_missing_training_sets_fall_back_to_embedded_images_and_say_so(results, monkeypatch):
    monkeypatch.setattr(datasets, "is_installed", lambda name: name.startswith("embedded"))
    asked = study.table3(PROFILES["cpu"])[0]
    run = study.found(asked)
    assert run.data == ("embedded-train",) and run.spec["data"] == ["embedded-train"] and run.id != asked.id
    assert list(study.test_images(PROFILES["cpu"], run.data)) == ["embedded-test"]
    asked.folder.mkdir(parents=True)
    (asked.folder / "run.json").write_text("{}")
    assert study.found(asked) == asked   # finished elsewhere: its record serves, the images are not needed


def test_queue_names_what_it_knows():
    assert study.queue(SMOKE, ["04"]) == study.queue(SMOKE)
    with pytest.raises(ValueError, match="17.*04_table3_attention"):
        study.queue(SMOKE, ["17"])


# --- pack and unpack ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(results):
    """One finished and one unfinished run."""
    finished, unfinished = tiny(), tiny(seed=1, updates=500)
    study.train(finished, show=False)
    import time
    study.train(unfinished, show=False, deadline=time.monotonic() + 0.5)
    assert (unfinished.folder / "checkpoint.pt").exists()
    return finished, unfinished


def test_packed_runs_arrive_whole_and_continue(two_runs, tmp_path, monkeypatch):
    finished, unfinished = two_runs
    monkeypatch.setattr(study, "PACK_BYTES", 20_000)
    parts, left_out = study.pack(SMOKE, tmp_path / "parts")
    assert 1 < len(parts) <= 8 and not left_out and all(part.stat().st_size <= 20_000 for part in parts)
    before = {path.name: path.read_bytes() for path in finished.folder.glob("[!.]*")}
    updates = study._updates(unfinished.folder / "checkpoint.pt")
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "elsewhere"))
    study.unpack(reversed(parts))
    assert {path.name: path.read_bytes() for path in finished.folder.glob("[!.]*")} == before
    assert study._updates(unfinished.folder / "checkpoint.pt") == updates > 0
    assert study.unpack(parts) == []   # nothing to add a second time


def test_unpack_keeps_what_is_further(two_runs, tmp_path):
    finished, unfinished = two_runs
    parts, _ = study.pack(SMOKE, tmp_path)
    (finished.folder / "scores.csv").write_text("mine\n")
    state = torch.load(unfinished.folder / "checkpoint.pt", weights_only=True)
    state["progress"]["update"] += 1
    torch.save(state, unfinished.folder / "checkpoint.pt")
    assert study.unpack(parts) == []
    assert (finished.folder / "scores.csv").read_text() == "mine\n"


def test_what_finds_no_room_is_named(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PACK_BYTES", 14_000)
    parts, left_out = study.pack(SMOKE, tmp_path)
    assert len(parts) <= 8 and left_out and not any(name.endswith((".json", ".csv")) for name in left_out)


def test_bad_packs_are_refused(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PACK_BYTES", 20_000)
    parts, _ = study.pack(SMOKE, tmp_path)
    with pytest.raises(ValueError, match="missing, damaged"):
        study.unpack(parts[:-1])
    parts[0].write_bytes(b"x" + parts[0].read_bytes()[1:])
    with pytest.raises(ValueError, match="missing, damaged"):
        study.unpack(parts)


def test_packs_hold_runs_only(results, tmp_path):
    import hashlib
    import io
    import zipfile
    for name in ("smoke/runs/../../evil/run.json", "smoke/runs/a/evil.py", "other/runs/a/run.json"):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(name, "{}")
        part = tmp_path / f"runs-smoke-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}-1of1.part"
        part.write_bytes(data.getvalue())
        with pytest.raises(ValueError, match="no file of a run"):
            study.unpack([part])


# --- committed records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((config.ROOT / "results").glob("*/runs/*/run.json")),
                         ids=lambda path: path.parent.name)
def test_committed_records_are_of_their_specs(path):
    """A change of the code must not orphan the records: a run's id follows from its spec, its scores are complete."""
    record = json.loads(path.read_text())
    spec = dict(record["spec"])
    arch = Architecture(**{**spec.pop("arch"), "depths": tuple(record["spec"]["arch"]["depths"])})
    run = Run(record["profile"], arch, **{**spec, "data": tuple(spec["data"])})
    assert run.id == record["id"] == path.parent.name
    scores = pd.read_csv(path.parent / "scores.csv")
    assert not scores.duplicated(["set", "image"]).any() and np.isfinite(scores.select_dtypes("number")).all(axis=None)
    assert pd.read_csv(path.parent / "curve.csv")["update"].iloc[-1] == run.updates
    assert record["git_commit"] != "unknown" and "+changes" not in record["git_commit"]
