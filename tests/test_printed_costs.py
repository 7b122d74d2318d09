"""Costs that the paper prints: which of them the described networks have, and which rows mix two networks."""
import json

import pandas as pd
import pytest

from ikmlib import peers
from ikmlib.config import PROFILES
from ikmlib.files import write_text
from ikmlib.models import SCALES, complexity
from ikmlib.study import experiments, printed_costs
from ikmlib.study.printed_costs import MIXED, peer_costs, rounds_to, to_train


@pytest.mark.parametrize(("ours", "printed", "equal"), [
    (1390.915, "1390.9", True), (1390.915, "1391.0", False), (60.0, "60", True), (59.94, "60.0", False)])
def test_a_number_equals_the_print_if_it_rounds_to_it(ours, printed, equal):
    assert rounds_to(ours, printed) is equal


def test_every_printed_cost_of_the_papers_networks_is_counted(executed, monkeypatch):
    monkeypatch.delenv("IKM_RESULTS", raising=False)
    costs = executed("99", "cpu").tables["report_complexity"].set_index(["table", "network", "quantity"])
    assert len(costs) == 60 and (~costs.equal).sum() == 11
    assert costs.ours["Table I", "U-HDN x2", "params_k"] == pytest.approx(1390.915)
    large = costs.loc["Table II", "U-HDNL+IKM", "params_m"]
    assert large.paper == 10.9 and large.equal
    table3 = costs.loc["Table III"]
    assert table3.equal["RB: SA adds", "params_k"] and table3.ours["DB: IKM adds", "flops_g"] == 0
    assert set(costs[~costs.equal].index.get_level_values("table")) == {"Table IV", "Table V"}


@pytest.fixture
def small(monkeypatch):
    """Tables of a few rows, so that no large network is built."""
    rows = [{"scale": "2", "method": "Bicubic", "params_k": "", "flops_g": ""},
            {"scale": "2", "method": "SRCNN", "params_k": "8.0", "flops_g": "1.4"},
            {"scale": "2", "method": "IDN", "params_k": "715.3", "flops_g": "31.0"},
            {"scale": "4", "method": "MS3-Conv", "params_k": "1300.0", "flops_g": "21.6"}]
    monkeypatch.setattr(printed_costs, "printed", lambda number: rows)


def test_the_other_methods_rows_say_which_count_fits_and_whether_they_mix_networks(small):
    table = peer_costs(1).set_index("method")
    assert list(table.index) == ["SRCNN", "IDN", "MS3-Conv"]
    assert list(table.params_fit) == ["yes", "yes", "not built"] and table.fits["MS3-Conv"] == "not built"
    assert table.flops_g_paper["MS3-Conv"] == 21.6 and pd.isna(table.flops_g_ours["MS3-Conv"])
    assert table.fits["SRCNN"] == "convolutions and with activations" and table.fits["IDN"] == "with activations"
    assert "9-5-5" in table.mixed["SRCNN"]


def test_rows_that_mix_networks_have_another_cost_as_published():
    assert complexity(peers.build_peer("srcnn", 2), 2)[0] == 57_281 and "57.3 K" in MIXED["SRCNN", SCALES]
    assert complexity(peers.build_peer("idn", 2), 2)[0] == 552_769 and "553 K" in MIXED["IDN", SCALES]
    assert complexity(peers.build_peer("lapsrn", 4), 4)[0] == 870_112 and "870 K" in MIXED["LapSRN", (4,)]


def test_hours_follow_multiply_adds_once_all_runs_that_they_rest_on_are_finished(results):
    cpu = PROFILES["cpu"]
    networks = {"VDSR": experiments.rival(cpu, "vdsr"), "U-HDN": experiments.same_budget(cpu)["U-HDN",]}
    for seed, run in experiments.planned(cpu, "same_budget").query("network == 'U-HDN+IKM'")[["seed", "run"]].values:
        table = to_train(networks).set_index("method")
        assert table.hours.isna().all() and table.flops_g_ours["VDSR"] == pytest.approx(114.861, abs=1e-3)
        write_text(run.folder / "run.json", json.dumps(
            {"id": run.id, "profile": run.profile, "spec": run.spec, "train_seconds": 3600.0 * (1 + seed)}))
    table = to_train(networks).set_index("method")
    assert table.hours["U-HDN"] == pytest.approx(2)
    assert table.hours["VDSR"] == pytest.approx(2 * 114.861 / 60.312, abs=1e-3)
