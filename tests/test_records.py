"""Runs: trained once, scored once, locked; committed records are what their specs say."""
import fcntl
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, tiny

from ikmlib import config, datasets
from ikmlib.config import PROFILES
from ikmlib.metrics import psnr_y, ssim_y
from ikmlib.models import ARCHITECTURES, Architecture
from ikmlib.study import records
from ikmlib.study.records import Run
from ikmlib.trainers import Trainer, TrainingDiverged, evaluate, mae, mae_y, pairs, restored

SMOKE = PROFILES["smoke"]


def test_id_is_of_the_spec_alone():
    run = tiny()
    assert replace(run, profile="cpu").id[-8:] == run.id[-8:]
    other = replace(TINY, gradient="go")
    for change in (dict(seed=1), dict(updates=7), dict(data=("T91",)), dict(arch=other), dict(scale=3)):
        assert replace(run, **change).id != run.id


def test_a_schedule_changes_the_id_and_the_papers_is_left_out_of_it():
    run = tiny()
    assert replace(run, schedule="halving").id == run.id != replace(run, schedule="cosine").id


def test_slugs_are_readable():
    assert records.slug(ARCHITECTURES["uhdn_l"]) == "uhdn_l-ikm"
    assert records.slug(replace(ARCHITECTURES["rb"], attention="ca")) == "rb-ca"
    assert records.slug(replace(ARCHITECTURES["uhdn"], kernel=5, gradient="go")) == "uhdn-ikm-kernel5-gradientgo"
    run = Run.of(PROFILES["cpu"], ARCHITECTURES["uhdb"], 1)
    assert run.id.startswith("uhdb-ikm-x2-seed1-")
    assert replace(run, batch=1, updates=16000).id.startswith("uhdb-ikm-batch1-updates16000-x2-seed1-")


def test_a_run_is_trained_and_scored_once(results, monkeypatch):
    run = tiny()
    assert records.train(run, show=False) and run.finished
    record = records.record(run)
    assert record["id"] == run.id and record["spec"] == run.spec and record["params"] == sum(
        p.numel() for p in run.build().parameters())
    for key in ("git_commit", "device", "torch", "finished_utc", "data_sha256", "updates_per_second"):
        assert record[key]
    assert not (run.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(records, "Trainer", None)   # any attempt to train again fails
    assert records.train(run)


def test_scores_are_of_the_saved_weights_under_both_conventions(results):
    run = tiny()
    records.train(run, show=False)
    model = run.build()
    model.load_state_dict(torch.load(run.folder / "weights.pt", weights_only=True)["model"])
    model.to(memory_format=torch.channels_last)
    images = records.test_images(SMOKE, run.data)["embedded-test"]
    found = run.scores().set_index("image")
    for name, sr, hr in restored(model, pairs(images, 2)):
        for rounded, suffix in ((False, ""), (True, "_rounded")):
            psnr, ssim = (metric(sr, hr, shave=2, round_y=rounded) for metric in (psnr_y, ssim_y))
            assert found.loc[name, f"psnr_y{suffix}"] == pytest.approx(psnr, abs=2e-6)
            assert found.loc[name, f"ssim_y{suffix}"] == pytest.approx(ssim, abs=2e-6)
    curve = run.curve()
    assert list(curve["update"]) == [3, 6]
    validation = records.training_data(run.data, 2, 8, "cpu")[1]
    assert curve.psnr_y.iloc[-1] == pytest.approx(evaluate(model, validation, 2).psnr_y.mean(), abs=2e-6)


def test_a_run_that_diverges_says_so_and_is_not_trained_again(results, monkeypatch):
    run = replace(tiny(updates=40), rate=1e4)
    with pytest.raises(TrainingDiverged, match=run.id):
        records.train(run, show=False)
    record = json.loads((run.folder / "diverged.json").read_text())
    assert run.diverged and not run.finished and record["spec"] == run.spec and 0 < record["update"] < 40
    assert records.state(run)[0] == "diverged" and not (run.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(records, "Trainer", None)   # any attempt to train again fails
    with pytest.raises(TrainingDiverged, match=run.id):
        records.train(run)


def test_interrupted_run_ends_like_an_uninterrupted_one(results, monkeypatch, tmp_path):
    torch.set_num_threads(1)
    assert not records.train(tiny(), show=False, deadline=0.0)   # time is up before the first update
    assert (tiny().folder / "checkpoint.pt").exists() and records.train(tiny(), show=False)
    first = tiny().scores()
    monkeypatch.setenv("IKM_RESULTS", str(tmp_path / "again"))
    records.train(tiny(), show=False)
    pd.testing.assert_frame_equal(first, tiny().scores())


@pytest.mark.parametrize(("peer", "params", "loss"), [
    ("srcnn", 57_281, mae_y), ("imdn", 694_404, mae), ("", None, mae)])
def test_a_network_of_luma_learns_luma_and_records_say_which_peer_it_was(results, monkeypatch, peer, params, loss):
    run, losses = replace(tiny(updates=2), peer=peer), []
    monkeypatch.setattr(records, "Trainer", lambda *words, **options: losses.append(options["loss"]) or Trainer(
        *words, **options))
    assert records.train(run, show=False) and losses == [loss]
    record = records.record(run)
    assert Run.from_record(record) == run and record["spec"]["peer"] == peer
    assert (record["params"], record["multi_adds"]) == run.cost and run.cost[0] == (params or run.cost[0])
    assert ("block" in records.all_records(SMOKE)) is (peer == "")
    assert not peer or run.id.startswith(f"{peer}-batch2-updates2-x2-seed0-")


def test_a_peer_changes_the_id_and_its_absence_is_left_out_of_it():
    run = Run.of(PROFILES["cpu"], Architecture(), 0)
    assert replace(run, peer="imdn").id.startswith("imdn-x2-seed0-") and run.id == "uhdn-ikm-x2-seed0-a265f239"


def test_a_run_in_other_hands_is_left_alone(results):
    run = tiny()
    run.folder.mkdir(parents=True)
    with open(run.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert records.train(run, show=False) is False
    assert records.train(run, show=False)


def test_missing_training_sets_fall_back_to_embedded_images_and_say_so(results, monkeypatch):
    monkeypatch.setattr(datasets, "is_installed", lambda name: name.startswith("embedded"))
    asked = Run.of(PROFILES["cpu"], TINY, 0)
    run, = records.found([asked])
    assert run.data == ("embedded-train",) and run.spec["data"] == ["embedded-train"] and run.id != asked.id
    assert list(records.test_images(PROFILES["cpu"], run.data)) == ["embedded-test"]
    asked.folder.mkdir(parents=True)
    (asked.folder / "run.json").write_text("{}")
    assert records.found([asked]) == [asked]   # finished elsewhere: its record serves, the images are not needed


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
