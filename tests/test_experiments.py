"""The plan: what was declared, shared runs, order; what is done, how long the rest takes, what is kept of a run."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import tiny

from ikmlib import config, files
from ikmlib.config import PROFILES
from ikmlib.models import ARCHITECTURES, SRNetwork, complexity
from ikmlib.study import experiments, records, scoring, training, weights
from ikmlib.study.experiments import PARTS, PLAN, planned
from ikmlib.trainers import TrainingDiverged

SMOKE, CPU, LONG, PAPER = (PROFILES[name] for name in ("smoke", "cpu", "cpu-long", "paper"))
CPU_UHDN = records.Run.of(CPU, ARCHITECTURES["uhdn"], 0)


def seeds(profile, part):
    """Cell -> its declared seeds; every cell of the part, also one of which nothing is declared."""
    plan = planned(profile, part)
    return {cell: [seed for *at, seed in plan.drop(columns="run").itertuples(index=False) if tuple(at) == cell]
            for cell in PARTS[part].cells(profile)}


def first_run(profile, part, *cell):
    """The run with seed 0 of a cell."""
    plan = planned(profile, part)
    return plan[(plan[list(PARTS[part].factors)] == list(cell)).all(axis=1)].run.iloc[0]


def test_the_declared_seeds():
    table3, controls = seeds(CPU, "table3"), seeds(CPU, "controls")
    assert all(of == ([0, 1, 2, 3, 4] if attention in ("none", "IKM") else [0, 1, 2])
               for (_, attention), of in table3.items())
    five = {"none", "IKM", "constant 1.5", "shuffled", "softmax, strict", experiments.FASTER}
    assert {control for (block, control), of in controls.items() if of == [0, 1, 2, 3, 4]} == five
    assert {len(of) for of in controls.values()} == {3, 5} and controls["RB", "shuffled"] == [0, 1, 2]
    assert set(map(tuple, seeds(CPU, "rates").values())) == {(0,)}
    assert seeds(CPU, "half") == {("U-HDB", attention): [5, 6, 7, 8, 9] for attention in ("none", "IKM")}
    for part in ("table4", "table5", "fig8", "fig9", "fig11", "quarter", "same_budget"):
        assert set(map(tuple, seeds(CPU, part).values())) == {(0, 1, 2)}
    assert {batch: tuple(of) for (_, batch, _), of in seeds(CPU, "fig10").items()} == {
        1: (), 4: (0, 1, 2), 16: (0, 1, 2)}
    assert set(map(tuple, seeds(CPU, "whole").values())) == {(3, 4, 5, 6, 7)}


def test_cpu_long_has_seeds_that_nobody_has_looked_at():
    table3, controls = seeds(LONG, "table3"), seeds(LONG, "controls")
    assert table3["U-HDB", "IKM"] == table3["U-HDB", "none"] == controls["U-HDB", "IKM"] == [*range(5, 15)]
    assert controls["U-HDB", "constant 1.5"] == controls["U-HDB", "shuffled"] == [5, 6, 7, 8, 9]
    assert all(table3[block, attention] == [5, 6, 7] for block in ("RB", "DB", "RDB") for attention in ("none", "IKM"))
    assert not table3["U-HDB", "CA"] and not controls["U-HDB", "strict"] and not any(seeds(LONG, "table5").values())
    assert seeds(LONG, "table1") == {(2,): [0], (4,): [], (3,): []}


def test_one_comparison_is_finished_after_the_other(monkeypatch):
    monkeypatch.setattr(records.datasets, "is_installed", lambda name: True)
    runs = training.queue(None)
    assert len(set(runs)) == len(runs) == len({(run.profile, run.id) for run in runs})
    lines = {line: {run for row in PLAN if row.line == line for seed in row.seeds for run in row.runs(seed)}
             for line in "abcdefgh"}
    assert set(runs) == set().union(*lines.values())
    firsts = [min(runs.index(run) for run in lines[line] - set().union(*(lines[x] for x in "abcdefgh" if x < line)))
              for line in "abcdefgh"]
    assert firsts == sorted(firsts)
    table3 = {run for row in PLAN if (row.line, row.part) == ("a", "table3") for seed in row.seeds
              for run in row.runs(seed)}
    assert set(runs[:len(table3)]) == table3
    assert [run.seed for run in runs[:len(table3)]] == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 8 + [4] * 8
    assert runs[0].id.startswith("uhdb-none-x2-seed0-")


def test_rivals_are_trained_alike_and_change_nothing_else_in_the_queue(monkeypatch):
    monkeypatch.setattr(records.datasets, "is_installed", lambda name: True)
    cells = experiments.same_budget(CPU)
    assert {replace(run, peer="", arch=CPU_UHDN.arch) for run in cells.values()} == {CPU_UHDN}
    assert [run.peer for run in cells.values()] == ["srcnn", "lapsrn", "idn", "carn", "imdn", "", ""]
    assert cells["U-HDN+IKM",] == CPU_UHDN == first_run(CPU, "fig8", 4, 6, 64) and CPU_UHDN.arch.blocks == 4
    assert [round(run.cost[1] / 1e9, 1) for run in cells.values()] == [9.9, 18.9, 23.9, 41.9, 29.8, 60.3, 60.3]
    before = {profile: training.queue(profile) for profile in (None, SMOKE, PAPER)}
    monkeypatch.setattr(experiments, "PLAN", [row for row in PLAN if row.part != "same_budget"])
    for profile, new in ((None, 18), (SMOKE, 5), (PAPER, 15)):
        others = training.queue(profile)
        assert [run for run in before[profile] if run in others] == others
        assert len(before[profile]) == len(others) + new


def test_a_run_serves_every_artefact_that_shows_it():
    uhdb = first_run(CPU, "table3", "U-HDB", "IKM")
    for part, *cell in (("table5", "yes", "yes"), ("table4", 3, 1, "IKM"), ("fig9", 0.0), ("fig11", "U-HDN"),
                        ("fig8", 1, 6, 64), ("controls", "U-HDB", "IKM"), ("fig5", "U-HDB", "IKM")):
        assert first_run(CPU, part, *cell) == uhdb
    assert first_run(CPU, "table5", "no", "no").arch.depths == (5,) * 6
    at_four = first_run(PAPER, "fig11", "U-HDN").arch
    assert at_four == ARCHITECTURES["uhdn"] == first_run(PAPER, "table4", 3, 1, "IKM").arch


@pytest.mark.parametrize(("profile", "batches", "updates"), [(CPU, {1, 4, 16}, 4000), (PAPER, {4, 16, 64}, 200_000)])
def test_equal_patches_and_equal_updates(profile, batches, updates):
    runs = experiments.fig10(profile)
    for (_, batch, budget), run in runs.items():
        patches = run.updates * run.batch == profile.updates * profile.batch
        assert run.updates == updates if budget == "equal updates" else patches
        assert run.batch == batch
    assert {run.batch for run in runs.values()} == batches
    assert [cell for cell in runs if cell[0] == "autograd"] == [("autograd", sorted(batches)[1], "either")]


def test_rungs_rates_and_repetitions_differ_in_one_thing():
    base = experiments.table3(CPU)
    assert experiments.controls(CPU)["U-HDB", experiments.FASTER] == replace(base["U-HDB", "none"], rate=1.5 * CPU.rate)
    for part, change in (("quarter", "updates"), ("rates", "rate"), ("again", "reverse")):
        for cell, run in PARTS[part].cells(CPU).items():
            own = base[cell[:2]]
            assert run == replace(own, **{change: getattr(run, change)}) != own
    assert {run.updates for run in experiments.quarter(CPU).values()} == {CPU.updates // 4}
    assert {run.rate / CPU.rate for run in experiments.rates(CPU).values()} == {0.5, 2.0}
    assert {run.rate / CPU.rate for run in experiments.half(CPU).values()} == {0.5}


def test_the_cpu_profiles_use_the_recipe_that_was_chosen():
    runs = pd.read_csv(config.ROOT / "results" / "recipe.csv")
    shape = ["rate", "updates", "batch"]
    refused = runs[runs.diverged_at.notna()].set_index(shape).index   # RB diverged there
    asked = runs[runs.step.isin(["rates", "shapes"])]                 # "before the amendment" counts no more
    means = asked[~asked.set_index(shape).index.isin(refused)].groupby(shape).psnr_y.mean()
    best = means[means >= means.max() - 0.02].reset_index().sort_values(["updates", "rate"])
    assert tuple(best[shape].iloc[0]) == (CPU.rate, CPU.updates, CPU.batch)
    assert not set(runs.seed) & {seed for row in PLAN for seed in row.seeds}
    assert replace(CPU, name="cpu-long", summary=LONG.summary, updates=4 * CPU.updates) == LONG


def test_final_models_train_longer_where_the_paper_does():
    assert {run.updates for run in experiments.table1(PAPER).values()} == {1_000_000}
    assert {run.updates for run in experiments.table5(PAPER).values()} == {200_000}


@pytest.mark.parametrize(("order", "params_k", "flops_g"), [
    ("V1", 1390.9, 60.3), ("V2", 1401.3, 60.8), ("V3", 1401.3, 60.8)])
def test_fig11_has_the_papers_costs(order, params_k, flops_g):
    run = experiments.fig11(PAPER)[order,]
    params, multi_adds = complexity(SRNetwork(run.arch, 2), 2)
    assert (round(params / 1e3, 1), round(multi_adds / 1e9, 1)) == (params_k, flops_g)


def test_queue_names_what_it_knows():
    assert {run.arch.block for run in training.queue(SMOKE, ["04"])} == {"rb", "db", "rdb", "uhdb"}
    with pytest.raises(ValueError, match="17.*04_table3_attention"):
        training.queue(SMOKE, ["17"])


def test_diverged_runs_are_reported_and_others_go_on(results, monkeypatch, capsys):
    good, bad = tiny(), tiny(seed=1)
    real = records.train

    def train(run, **options):
        if run == bad:
            raise TrainingDiverged("run seed1: loss nan")
        return real(run, show=False)

    monkeypatch.setattr(records, "train", train)
    plan = pd.DataFrame({"cell": ["a", "a", "b"], "seed": [0, 1, 0], "run": [bad, good, good]})
    assert training.train_runs(plan.run, show=False) == 1 and "loss nan" in capsys.readouterr().out
    assert good.finished and list(experiments.complete(plan).cell) == ["b"]


def test_status_knows_what_is_left(results, monkeypatch):
    done, begun, missing, failed = tiny(), tiny(seed=1, updates=400), tiny(seed=2, updates=12), tiny(seed=3)
    files.write_text(failed.folder / "diverged.json", '{"update": 3}')
    records.train(done, show=False)
    records.train(begun, show=False, deadline=__import__("time").monotonic() + 0.3)
    runs = {"table3": [done, begun], "fig9": [done, missing, failed]}
    monkeypatch.setattr(experiments, "PLAN", (experiments.Row("smoke", "smoke", "table3", (0,)),
                                              experiments.Row("smoke", "smoke", "fig9", (0,))))
    monkeypatch.setattr(experiments.Row, "runs", lambda row, seed: runs[row.part])
    table = training.status(SMOKE).set_index("part")
    assert list(table.runs) == [2, 2] and list(table.finished) == [1, 0]   # a shared run counts once
    assert list(table.diverged) == [0, 1]
    spent, updates = records.read_record(done.folder)["train_seconds"], records.updates_done(begun)
    assert 0 < updates < 400 and table.hours_left["fig9"] == pytest.approx(2 * spent / 3600)
    assert table.hours_left["table3"] == pytest.approx((400 - updates) / 6 * spent / 3600)


def test_without_a_finished_run_the_hours_are_not_known(results):
    table = training.status(SMOKE)
    assert table.finished.sum() == 0 and table.hours_left[table.runs > 0].isna().all()


def test_what_later_notebooks_need_is_kept_when_a_run_ends(results, monkeypatch):
    usual = replace(SMOKE, name="smoke", updates=6, batch=2, patch=8, evidence=True)
    monkeypatch.setitem(PROFILES, "smoke", usual)
    monkeypatch.setitem(ARCHITECTURES, "uhdb", tiny().arch)
    monkeypatch.setattr(experiments, "table3", lambda profile: {("U-HDB", "IKM"): tiny()})
    assert training.train_runs([tiny(), tiny(attention="none"), tiny(updates=7)], show=False) == 0
    assert scoring.other_attention_scores(tiny()) is not None
    assert [path.stem for path in weights.folder().iterdir()] == [tiny().id]
    assert scoring.other_attention_scores(tiny(attention="none")) is None
    assert scoring.other_attention_scores(tiny(updates=7)) is None   # not the profile's usual budget


def test_the_primary_endpoints_weights_are_kept():
    kept = [run for run in training.queue(None) if training.kept(run)]
    assert [(run.profile, run.arch.blocks, run.arch.attention) for run in kept] == [
        ("cpu", 1, "ikm")] * 3 + [("cpu-long", 1, attention) for _ in range(10) for attention in ("none", "ikm")] + [
        ("cpu-long", 4, "ikm")]


@pytest.mark.parametrize("changed", [{"device": "NVIDIA H100"}, {"precision": "float32, TF32 convolutions"}])
def test_a_comparison_may_not_mix_devices_or_precisions(results, changed):
    records.train(tiny(), show=False)
    assert training.train_runs([tiny(), tiny(seed=1)], show=False) == 0
    files.write_text(tiny().folder / "run.json", json.dumps(records.read_record(tiny().folder) | changed))
    assert training.train_runs([tiny(), tiny(seed=1)], show=False) == 0   # nothing is left to train
    with pytest.raises(ValueError, match=f"{tiny().id} was trained on .*IKM_RESULTS"):
        training.train_runs([tiny(), tiny(seed=2)], show=False)
    assert not tiny(seed=2).folder.exists()


def test_what_had_diverged_before_is_no_failure(results):
    files.write_text(tiny(seed=1).folder / "diverged.json", '{"update": 3}')
    assert training.train_runs([tiny(), tiny(seed=1)], show=False) == 0 and tiny().finished


@pytest.mark.parametrize(("profile", "gigabytes", "jobs"), [
    ("small", 8, 4), ("small", 4, 2), ("small", 1, 1), ("paper", 16, 1), ("paper", 80, 4)])
def test_on_a_gpu_as_many_run_as_its_memory_holds(results, monkeypatch, profile, gigabytes, jobs):
    started = []
    memory = SimpleNamespace(total_memory=int(gigabytes * 1e9))
    monkeypatch.setattr(records, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(training, "programs", lambda commands, at_once: started.append(at_once) or [(0, 0)])
    monkeypatch.setattr(training, "train_runs", lambda runs, deadline: started.append(1) or 0)
    assert training.train(PROFILES[profile], [], None, download=False) == 0 and started == [jobs]
