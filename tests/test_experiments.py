"""The queue: every artefact's runs, shared, in order of priority; what is done, and how long the rest takes."""
from dataclasses import replace

import pytest
from conftest import tiny

from ikmlib import experiments, study
from ikmlib.config import PROFILES
from ikmlib.models import SRNetwork, complexity
from ikmlib.trainers import TrainingDiverged

SMOKE, CPU = PROFILES["smoke"], PROFILES["cpu"]


def test_table3_is_the_whole_grid_seed_by_seed():
    runs = experiments.in_order(experiments.table3(PROFILES["small"]))
    cells = {(run.arch.block, run.arch.attention) for run in runs[:16]}
    assert len(runs) == 48 and len(cells) == 16 and {run.seed for run in runs[:16]} == {0}
    assert len({run.id for run in runs}) == 48
    assert runs[0].id.startswith("uhdb-none-x2-seed0-")


def test_a_run_serves_every_artefact_that_shows_it():
    first = {name: wanted(CPU) for name, wanted in experiments.QUEUE.items()}
    uhdn = [first["06_table5_ablation"]["U-style + hourglass"], first["05_table4_receptive_field"]["k=3 D=1 IKM"],
            first["08_fig9_threshold"]["tau = 0.0"], first["10_fig11_hourglass"]["U-HDN"],
            first["02_table1_lightweight"]["x2"], first["07_fig8_model_size"]["N=4"],
            first["07_fig8_model_size"]["C=64"], first["03_table2_high_fidelity"]["U-HDN+IKM"]]
    assert all(runs == uhdn[0] for runs in uhdn)
    uhdb = first["04_table3_attention"]["U-HDB IKM"]
    assert first["07_fig8_model_size"]["N=1"] == uhdb
    assert first["09_fig10_iso_vs_go"]["IsO, batch 8, equal updates"] == uhdb
    runs = experiments.queue(CPU)
    assert len({run.id for run in runs}) == len(set(runs)) == len(runs)


def test_equal_patches_and_equal_updates():
    for label, (run, *_) in experiments.fig10(CPU).items():
        if "equal patches" in label:
            assert run.updates * run.batch == CPU.updates * CPU.batch
        else:
            assert run.updates == CPU.updates
        assert f"batch {run.batch}," in label


def test_final_models_train_longer_where_the_paper_does():
    paper = PROFILES["paper"]
    assert {run.updates for runs in experiments.table1(paper).values() for run in runs} == {1_000_000}
    assert {run.updates for runs in experiments.table5(paper).values() for run in runs} == {200_000}


@pytest.mark.parametrize(("label", "params_k", "flops_g"), [
    ("V1", 1390.9, 60.3), ("V2", 1401.3, 60.8), ("V3", 1401.3, 60.8)])
def test_fig11_has_the_papers_costs(label, params_k, flops_g):
    run = experiments.fig11(SMOKE)[label][0]
    params, multi_adds = complexity(SRNetwork(run.arch, 2), 2)
    assert (round(params / 1e3, 1), round(multi_adds / 1e9, 1)) == (params_k, flops_g)


def test_queue_names_what_it_knows():
    assert experiments.queue(SMOKE, ["04"]) == experiments.in_order(experiments.table3(SMOKE))
    with pytest.raises(ValueError, match="17.*04_table3_attention"):
        experiments.queue(SMOKE, ["17"])


def test_diverged_runs_are_reported_and_others_go_on(results, monkeypatch):
    good, bad = tiny(), tiny(seed=1)
    real = study.train

    def train(run, **options):
        if run == bad:
            raise TrainingDiverged("run seed1: loss nan")
        return real(run, show=False)

    monkeypatch.setattr(study, "train", train)
    with pytest.warns(UserWarning, match="loss nan"):
        assert experiments.ensure({"a": [bad, good]}) == {"a": [good]}
    assert experiments.ensure({"a": [bad], "b": [good]}, train_missing=False) == {"a": [], "b": [good]}
    monkeypatch.setattr(experiments, "queue", lambda profile, only: [bad, good])
    assert experiments.work(SMOKE, show=False) == 1


def test_status_knows_what_is_left(results, monkeypatch):
    done, begun, missing = tiny(), tiny(seed=1, updates=400), tiny(seed=2, updates=12)
    study.train(done, show=False)
    study.train(begun, show=False, deadline=__import__("time").monotonic() + 0.3)
    monkeypatch.setattr(experiments, "QUEUE", {"a": lambda profile: {"x": [done, begun]},
                                               "b": lambda profile: {"y": [done, missing]}})
    table = experiments.status(SMOKE).set_index("run")
    assert list(table.state) == ["finished", "in progress", "missing"] and list(table.artefact) == ["a", "a", "b"]
    spent = table.seconds[done.id]
    assert table.hours_left[done.id] == 0 and table.hours_left[missing.id] == pytest.approx(2 * spent / 3600)
    share = (400 - table.updates[begun.id]) / table.updates[begun.id]
    assert table.hours_left[begun.id] == pytest.approx(table.seconds[begun.id] * share / 3600)


def test_without_a_finished_run_the_pace_is_measured(results, monkeypatch):
    run = tiny()
    twice = replace(run, updates=12)
    monkeypatch.setattr(experiments, "QUEUE", {"a": lambda profile: {"x": [run], "y": [twice]}})
    short, long = experiments.status(SMOKE).hours_left
    assert long == pytest.approx(2 * short) and short > 0
