"""Runs: trained once, scored once, locked; committed records are what their specs say."""
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import TINY, garbled, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ikmlib import config, datasets, files
from ikmlib.__main__ import main
from ikmlib.config import PROFILES
from ikmlib.metrics import psnr_y, ssim_y
from ikmlib.models import ARCHITECTURES
from ikmlib.study import records, report
from ikmlib.study.records import Run
from ikmlib.trainers import Trainer, TrainingDiverged, evaluate, mae, mae_y, pairs, super_resolve

SMOKE = PROFILES["smoke"]


def test_processes_with_one_pid_write_the_same_file_at_once(tmp_path):
    """Containers on several machines share pids, and threads do."""
    def write(_):
        files.write_bytes(tmp_path / "file", b"whole" * 1000)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(200))) == [None] * 200
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
    record = records.read_record(run.folder)
    assert record["id"] == run.id and record["spec"] == run.spec and record["params"] == sum(
        p.numel() for p in run.build().parameters())
    for key in ("git_commit", "device", "cpu_capability", "torch", "finished_utc", "updates_per_second"):
        assert record[key]
    assert record["continued"] == [] and record["pixels_sha256"] == {
        name: datasets.pixels_sha256(name) for name in ("embedded-train", "embedded-test")}
    assert not (run.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(records, "Trainer", None)   # any attempt to train again fails
    assert records.train(run)


def test_scores_are_of_the_saved_weights_under_both_conventions(results):
    run = tiny()
    records.train(run, show=False)
    model = run.build()
    model.load_state_dict(torch.load(run.folder / "weights.pt", weights_only=True)["model"])
    model.to(memory_format=torch.channels_last)
    images = records.scored_images(SMOKE)["embedded-test"]
    found = run.scores().set_index("image")
    for name, lr, hr in pairs(images, 2):
        sr = super_resolve(model, lr)
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
    assert run.status == "diverged" and not (run.folder / "checkpoint.pt").exists()
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


def test_a_run_tells_on_what_each_part_of_it_was_trained(results, monkeypatch):
    """Begun under one commit and continued under another one: the record names the first, and the second from there."""
    run, real = tiny(updates=400), records.here
    assert not records.train(run, show=False, deadline=time.monotonic() + 0.3)
    done = records.updates_done(run)
    monkeypatch.setattr(records, "here", lambda device: {**real(device), "git_commit": "later", "torch": "9"})
    assert 0 < done < 400 and records.train(run, show=False)
    record = records.read_record(run.folder)
    assert {key: record[key] for key in real(torch.device("cpu"))} == real(torch.device("cpu"))
    assert record["continued"] == [{"update": done, **real(torch.device("cpu")), "git_commit": "later", "torch": "9"}]
    assert records.all_records(SMOKE).stretches.tolist() == [2]


@pytest.mark.parametrize(("peer", "params", "loss"), [
    ("srcnn", 57_281, mae_y), ("imdn", 694_404, mae), ("", None, mae)])
def test_a_network_of_luma_learns_luma_and_records_say_which_peer_it_was(results, monkeypatch, peer, params, loss):
    run, losses = replace(tiny(updates=2), peer=peer), []
    monkeypatch.setattr(records, "Trainer", lambda *words, **options: losses.append(options["loss"]) or Trainer(
        *words, **options))
    assert records.train(run, show=False) and losses == [loss]
    record = records.read_record(run.folder)
    assert Run.from_record(record) == run and record["spec"]["peer"] == peer
    assert (record["params"], record["multi_adds"]) == run.cost and run.cost[0] == (params or run.cost[0])
    assert ("block" in records.all_records(SMOKE)) is (peer == "")
    assert not peer or run.id.startswith(f"{peer}-batch2-updates2-x2-seed0-")


def test_a_peer_changes_the_id_and_its_absence_is_left_out_of_it():
    run = Run.of(PROFILES["cpu"], ARCHITECTURES["uhdn"], 0)
    assert replace(run, peer="imdn").id.startswith("imdn-x2-seed0-") and run.id == "uhdn-ikm-x2-seed0-a265f239"


def test_a_run_in_other_hands_is_left_alone(results):
    run = tiny()
    run.folder.mkdir(parents=True)
    with open(run.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert records.train(run, show=False) is False
    assert records.train(run, show=False)


def test_without_its_image_sets_a_run_is_refused_and_the_way_out_is_named(results, monkeypatch, tmp_path):
    monkeypatch.setenv("IKM_DATA", str(tmp_path))
    monkeypatch.setenv("IKM_CACHE", str(tmp_path / "cache"))
    run = Run.of(PROFILES["cpu"], TINY, 0)
    with pytest.raises(FileNotFoundError, match="T91 is not installed.*data fetch T91.*IKM_DATA"):
        records.train(run, show=False)
    with pytest.raises(FileNotFoundError, match="Set5 is not installed.*data fetch Set5.*IKM_DATA"):
        records.scored_images(PROFILES["cpu"])
    assert main(["train", "--profile", "cpu", "--only", "06", "--jobs", "1", "--no-download"]) == 2


def test_a_run_is_found_by_its_digest_whatever_its_folder_is_called(results, monkeypatch):
    """Another name for the network, or another usual batch, retrains nothing."""
    records.train(tiny(), show=False)
    tiny().folder.rename(tiny().folder.with_name(f"an-older-name-{tiny().digest}"))
    assert tiny().id == f"an-older-name-{tiny().digest}" and tiny().finished
    monkeypatch.setattr(records, "Trainer", None)   # any attempt to train again fails
    assert records.train(tiny())


def test_scores_in_threads_are_those_of_one_thread(monkeypatch):
    """As beside a GPU, where the network is faster than the metrics."""
    images = list(pairs({str(i): torch.randint(256, (24, 26, 3), dtype=torch.uint8).numpy() for i in range(5)}, 2))
    model = tiny().build()
    expected = records.scores_of(model, images, 2)
    monkeypatch.setattr(records, "default_device", lambda: torch.device("cuda"))
    pd.testing.assert_frame_equal(records.scores_of(model, images, 2), expected)


# --- what may go wrong ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with two finished runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKM_RESULTS", str(folder := tmp_path_factory.mktemp("trained")))
        for seed in (0, 1):
            records.train(tiny(seed), show=False)
        return folder


@pytest.fixture
def two_runs(trained, results):
    return shutil.copytree(trained, results, dirs_exist_ok=True)


@pytest.mark.parametrize(("name", "old", "new", "why"), [
    ("run.json", r"(?s).*", "", r"/run.json is damaged .*\(JSONDecodeError"),
    ("run.json", r"(?s).{99}$", "", r"/run.json is damaged .*\(JSONDecodeError"),
    ("run.json", r"(?s).*", "[]", r"/run.json is damaged .*\(TypeError"),
    ("run.json", '"spec"', '"sepc"', "/run.json is damaged .*spec"),
    ("run.json", '"seed": 0', '"seed": 7', "/run.json is damaged .*its spec is that of .*-seed7-"),
    ("run.json", '"channels": 8', '"channels": "8"', "/run.json is damaged"),
    ("run.json", '"attention"', '"attentoin"', "/run.json is damaged .*attentoin"),
    ("run.json", '"params": ', '"params": 1', "/run.json is damaged .*its params or multi_adds"),
    ("run.json", '"files"', '"feils"', "/run.json is damaged .*files|is damaged .*files"),
    ("scores.csv", None, None, "not the files that it lists: scores.csv"),
    ("scores.csv", r"(?s).*", "", "not the files that it lists: scores.csv"),
    ("scores.csv", r"\n[^\n]*\n$", "\n", "not the files that it lists: scores.csv"),
    ("curve.csv", r"\n6,[^\n]*\n", "\n", "not the files that it lists: curve.csv"),
])
def test_what_is_wrong_with_a_record_is_found_and_the_report_refuses_it(two_runs, capsys, name, old, new, why):
    assert main(["verify"]) == 0 and capsys.readouterr().out == "nothing is wrong\n"
    path = tiny().folder / name
    if old is None:
        path.unlink()
    else:
        path.write_text(re.sub(old, new, path.read_text(), count=1))
    before = sorted(two_runs.rglob("*"))
    assert main(["verify"]) == 1
    line, = capsys.readouterr().out.splitlines()
    assert re.search(why, line) and tiny().id in line
    assert main(["report", "--profile", "smoke"]) == 2 and sorted(two_runs.rglob("*")) == before
    line, = capsys.readouterr().err.splitlines()
    assert re.search(why, line) and tiny().id in line


def test_verify_reads_what_notebooks_wrote(results, capsys):
    files.write_text(results / "smoke" / "claims.csv", "claim,verdict\nC1,mixed\n")
    assert main(["verify"]) == 1 and "smoke/claims.csv is damaged" in capsys.readouterr().out


def test_verify_names_controls_that_are_not_listed_or_were_changed(two_runs, capsys):
    path, record = tiny().folder / "controls.csv", records.read_record(tiny().folder)
    controls = tiny().scores()[["set", "image"]].assign(frozen=30.0, swapped=29.0)
    files.write_csv(path, controls)
    assert main(["verify"]) == 1 and "not the files that it lists: controls.csv" in capsys.readouterr().out
    files.write_text(path.with_name("run.json"), json.dumps(record | {"files": records.digests(tiny().folder)}))
    assert main(["verify"]) == 0
    files.write_csv(path, controls.assign(swapped=29.5))
    assert main(["verify"]) == 1 and "not the files that it lists: controls.csv" in capsys.readouterr().out


def test_a_report_over_all_profiles_is_written_as_a_whole_or_not_at_all(two_runs, monkeypatch):
    def refuse():
        raise ValueError("a damaged record")

    monkeypatch.setattr(report, "markdown", refuse)
    with pytest.raises(ValueError, match="a damaged record"):
        report.write_report("smoke")
    assert not list(two_runs.glob("*.*")) and not (two_runs / "smoke" / "runs.csv").exists()


def test_other_images_under_one_name_are_refused(two_runs):
    record = records.read_record(tiny(seed=1).folder)
    record["pixels_sha256"]["embedded-test"] = "0" * 64
    files.write_text(tiny(seed=1).folder / "run.json", json.dumps(record))
    with pytest.raises(ValueError, match=f"images of embedded-test are not the same in {tiny().id} and {tiny(1).id}"):
        records.all_records(SMOKE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["run.json", "scores.csv", "curve.csv"]))
def test_a_garbled_record_is_read_or_refused_in_one_line(two_runs, data, name):
    run = tiny()
    good = (run.folder / name).read_bytes()
    (run.folder / name).write_bytes(data.draw(garbled(good)))
    for line in files.refused(records.check, [run.folder / "run.json"]):
        assert str(run.folder) in line
    (run.folder / name).write_bytes(good)


JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*tiny().spec, *tiny().spec["arch"]]), value=JSON)
def test_a_spec_of_any_values_is_that_of_the_folder_or_refused_in_one_line(results, key, value):
    spec = tiny().spec
    (spec if key in spec else spec["arch"])[key] = value
    path = tiny().folder / "diverged.json"
    record = {"id": tiny().id, "profile": "smoke", "spec": spec, "torch": "2"}
    files.write_text(path, json.dumps(record))
    lines = files.refused(records.check, [path])
    assert len(lines) <= 1 and (lines or spec == tiny().spec or Run.from_record(files.read_json(path)).id == tiny().id)


def test_a_file_is_on_the_disk_before_it_gets_its_name(results, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "replace", lambda *words: done.append(words))
    files.write_text(results / "a", "x")
    written, (renamed, target), folder = done
    assert written == str(renamed) and target == results / "a" and folder == str(results)


def test_what_a_killed_process_was_writing_goes(results):
    tiny().folder.mkdir(parents=True)
    (tiny().folder / ".checkpoint.pt.4711").touch()
    records.train(tiny(), show=False)
    assert sorted(path.name for path in tiny().folder.glob(".*")) == [".lock"]


def test_a_full_disk_is_named_and_leaves_the_old_file(results):
    run = tiny()
    assert not records.train(run, show=False, deadline=0.0)
    before = (run.folder / "checkpoint.pt").read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:   # a limit of files in the place of one of the disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
        with pytest.raises(OSError, match=f"{run.folder}/checkpoint.pt"):
            records.train(run, show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (run.folder / "checkpoint.pt").read_bytes() == before and not list(run.folder.glob(".c*"))
    assert records.train(run, show=False)


def test_a_file_system_without_locks_is_named_and_serves_one_process(results, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"{tiny().folder}/.lock cannot be locked .No locks available.: only one"):
        assert records.train(tiny(), show=False)
    monkeypatch.setattr(subprocess, "Popen", None)   # no second process is started
    assert main(["train", "--profile", "smoke", "--jobs", "2", "--time-limit", "0", "--no-download"]) == 0


def test_the_commit_is_of_the_project_s_own_repository(tmp_path, monkeypatch):
    def commit(folder):
        git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a"]
        for words in ("init -q", "commit -q --allow-empty -m a", "rev-parse --short=12 HEAD"):
            done = subprocess.run([*git, *words.split()], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    copy = tmp_path / "copy"
    (copy / "ikmlib").mkdir(parents=True)
    monkeypatch.setattr(config, "ROOT", copy)
    commit(tmp_path)   # of another project
    assert records.git_commit() == "unknown"
    own = commit(copy)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert records.git_commit() == own
    (copy / "ikmlib" / "new.py").touch()
    assert records.git_commit() == own + "+changes"


def test_nothing_is_loaded_by_pickle():
    for path in (path for folder in ("ikmlib", "notebooks", "tools") for path in (config.ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".ipynb"):
            text = path.read_text("utf-8")
            assert not re.search(r"pickle|np\.load\(|numpy\.load\(", text), path
            assert all("weights_only=True" in call for call in re.findall(r"torch\.load\(.*", text)), path


# --- committed records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((config.ROOT / "results").glob("*/runs/*/run.json")),
                         ids=lambda path: path.parent.name)
def test_committed_records_are_of_their_specs(path, monkeypatch):
    """A change of the code must not orphan the records: a run's id follows from its spec, its scores are complete."""
    monkeypatch.delenv("IKM_RESULTS", raising=False)
    records.check(path)
    commit = records.read_record(path.parent)["git_commit"]
    assert commit != "unknown" and "+changes" not in commit
