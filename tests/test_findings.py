"""Costs against known answers, rounded luma against arithmetic, errors that follow what was computed."""
import numpy as np
import pandas as pd
import pytest
import torch

from ikmlib import config
from ikmlib.config import PROFILES
from ikmlib.files import write_csv, write_text
from ikmlib.models import build_model, cost
from ikmlib.study import claims, comparisons, experiments, findings
from ikmlib.study.findings import Conv, count
from ikmlib.study.records import SCORES

CPU = PROFILES["cpu"]


@pytest.fixture(scope="module")
def cells():
    return findings.cost_cells()


def test_every_printed_cost_of_the_papers_networks_is_checked(cells):
    """Tables I (3 scales), II (2 networks), III (4, and what 3 attentions add to each), V (4): two numbers each;
    Table IV prints ten #Params."""
    assert dict(cells.table.value_counts()) == {"Table I": 6, "Table II": 4, "Table III": 32, "Table IV": 10,
                                                "Table V": 8}
    assert (~cells.equal).sum() == 11 and set(cells[~cells.equal].table) == {"Table IV", "Table V"}
    ours = cells.set_index(["network", "quantity"]).ours
    assert ours["U-HDNL+IKM", "params_k"] == 10903.427 and round(ours["U-HDNL+IKM", "flops_g"], 1) == 471.5
    assert ours["RB: SA adds", "params_k"] == pytest.approx(9.616) and round(ours["RB: SA adds", "flops_g"], 2) == 0.42
    assert ours["U-HDB: CA adds", "params_k"] == pytest.approx(2.61) and ours["DB: IKM adds", "params_k"] == 0
    wide = findings.complexity_check(cells)
    assert len(wide) == 35 and (wide.rounds_to_the_paper == "no").sum() == 9   # networks; two of them in both numbers
    row = wide.set_index("network").loc["U-HDN x4"]
    assert (row.params_thousands_paper, row.params_thousands_ours, row.flops_billions_paper) == (1400.1, 1400.131, 15.7)


@pytest.mark.parametrize(("ours", "printed", "equal"), [
    (1390.915, "1390.9", True), (1390.915, "1390.0", False), (16.741, "16.7", True), (3e-6, "0", True),
    (0.6, "0", False)])
def test_rounding_to_the_printed_decimals(ours, printed, equal):
    assert comparisons.rounds_to(ours, printed) is equal


@pytest.mark.parametrize(("layers", "params"), [
    (findings.srcnn(1), 8_032), (findings.srcnn(5), 57_184), (findings.idn(3, 1), 715_331),
    (findings.idn(1, 4), 552_769), (findings.rdn(20, 6, 32), 5_616_515), (findings.rdn(16, 8, 64), 22_123_395),
    (findings.oisr_rk3(2), 41_926_769), (findings.oisr_rk3(4), 44_287_089)])
def test_parameters_of_other_methods(layers, params):
    assert count(layers)[0] == params


@pytest.mark.parametrize(("layers", "billions"), [
    (findings.srcnn(1), 1.4045), (findings.idn(3, 1), 30.977), (findings.rdn(20, 6, 32), 243.024),
    (findings.rdn(16, 8, 64), 956.3), (findings.oisr_rk3(2), 1812.128)])
def test_operations_of_other_methods(layers, billions):
    assert count(layers)[1] / 1e9 == pytest.approx(billions, rel=1e-4)


def test_layer_lists_count_like_built_networks():
    """The same functions count the study's own head and residual blocks: they agree with the modules."""
    model = build_model("rb", attention="none")
    layers = [Conv(3, 3, 48, at=2), Conv(3, 48, 48, 17, at=2, bias=False),
              Conv(3, 48, 192, at=2, groups=12, bias=False), Conv(3, 48, 3)]
    assert count(layers)[0] == sum(p.numel() for p in model.parameters())
    assert count(layers)[1] == cost(model.arch, 2)[1]
    conv = torch.nn.Conv2d(12, 8, 5, groups=4)
    assert count([Conv(5, 12, 8, groups=4)]) == (n := sum(p.numel() for p in conv.parameters()), n * 480 * 360)
    assert count([Conv(1, 2, 3, 2, at=4, activation=True, further=7)]) == (2 * (9 + 7), 2 * (9 + 3) * 120 * 90)


def test_rows_of_two_networks_fit_one_and_have_the_psnr_of_the_other():
    table = findings.peers().set_index(["method", "network"])
    assert table.fits["OISR-RK3", "for x2"] == "#FLOPs" and table.fits["OISR-RK3", "for x4"] == "#Params"
    for method in ("SRCNN", "IDN", "RDN"):
        fits, psnr = table.fits[method], table.has_the_psnr[method]
        assert sorted(fits) == ["#Params and #FLOPs", "neither"] and psnr[fits == "neither"].item() == "yes"
    assert set(table.params_thousands_paper) == {8.0, 715.3, 5620.0, 44300.0}


def finished_runs(levels, runs):
    """Leaves finished runs whose Set5 images have the given PSNR on floating-point luma, rounded as MSE + 1/6 says."""
    for run in runs:
        rows = [("Set5", name, psnr, 0.9, psnr - comparisons.rounding_cost(psnr), 0.9) for name, psnr in levels.items()]
        write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=SCORES[:6]))
        write_text(run.folder / "run.json", "{}")


def test_rounded_luma_in_table_2(results):
    levels = {"baby": 36.0, "bird": 37.0, "butterfly": 29.0, "head": 34.0, "woman": 33.0}
    finished_runs(levels, experiments.queue(CPU)[:2])
    done = findings.finished(CPU)
    assert len(done["all"]) == 2
    every = findings.rounded_table2(done)
    table = every[every["set"] == "Set5"].set_index("method")
    psnr = np.array(list(levels.values())) - 33.8 + 38.274
    by_hand = 10 * np.log10(1 + 10 ** (psnr / 10) / 255**2 / 6)   # 255^2 / 10^(psnr/10) is the MSE
    assert table.rounding_costs_db["RCAN"] == pytest.approx(by_hand.mean())
    assert table.psnr_rounded_ours["RCAN"] == pytest.approx(38.274 - by_hand.mean())
    assert table.psnr_rounded_paper["RCAN"] == 38.18 and table.psnr_floating_point["U-HDNL+IKM"] == 38.23
    found = findings.rounding_verdict(every, CPU)
    assert found["verdict"] == "supported" and "instead of +0.05" in found["because"]
    assert findings.rounding_verdict(every, PROFILES["smoke"])["verdict"] == claims.UNTESTED
    far = every.assign(difference_db=every.difference_db - 0.1)
    assert findings.rounding_verdict(far, CPU)["verdict"] == "not supported"


def test_what_rounding_does_not_explain_in_table_2_is_said(results):
    finished_runs({"a": 36.0, "b": 30.0}, experiments.queue(CPU)[:2])
    table = findings.rounded_table2(findings.finished(CPU))
    assert len(table) == 2 * 5 + 1
    urban = table[table["set"] == "Urban100"].set_index("method")
    assert urban.printed_minus_it_db["RCAN"] == pytest.approx(33.14 - 33.34) and urban.printed_minus_it_db["RDN"] == 0
    assert urban.costs_if_alike_db["RCAN"] == pytest.approx(10 * np.log10(1 + 10**3.334 / 255**2 / 6))
    assert urban[["rounding_costs_db", "difference_db"]].isna().all(axis=None)   # our networks are scored on Set5 alone
    because = findings.rounding_verdict(table, CPU)["because"]
    assert "RCAN Urban100 -0.20 (-0.02)" in because and "RDN Urban100 +0.00 (-0.02)" in because and "nan" not in because


def test_without_runs_nothing_is_claimed_of_rounding(results):
    table = findings.rounded_table2(findings.finished(CPU))
    assert table.psnr_rounded_ours.isna().all()
    found = findings.rounding_verdict(table, CPU)
    assert found["verdict"] == claims.UNTESTED and "nan" not in " ".join(found.values())


def test_errors_are_shown_by_numbers(results, cells):
    traps = findings.known_traps(CPU)
    table = findings.errors_found(CPU, traps, cells, findings.peers())
    shown = table.set_index("error").shown_by
    assert shown.str.contains(r"\d").all() and not shown.str.contains("nan").any() and shown.index.is_unique

    def said(words):
        return shown[shown.index.str.contains(words, regex=False)].item()

    assert said("constant (1.5)").startswith("31.9 %")
    assert "1.353 to 1.783; k·k·softmax alone 0.396 to 2.283" in said("Fig. 2")
    assert said("costs that") == "11 of 60 printed numbers" and "44,287 K (for x4), 41,927 K (for x2)" in said("OISR")
    assert "1.57 K to RB and 2.94 K to U-HDB; printed: 9.62 K and 1.29 K" in said("Eq. 6")
    assert "1390.0 and 1390.9 K" in said("two #Params") and "five images" not in " ".join(table.error)
    fixed = cells.assign(equal=cells.equal | (cells.network == "k = 5, dilation 2, IKM yes"))
    again = findings.errors_found(CPU, traps, fixed, findings.peers())
    assert "10 of 60 printed numbers" in set(again.shown_by)


def test_gains_read_off_five_images_get_their_interval(results):
    rng = np.random.default_rng(0)
    for label in ("U-HDB IKM", "U-HDB none"):
        for run in experiments.planned(CPU, "table3")[label]:
            finished_runs(dict(zip("abcde", 35 + rng.normal(0, 0.05, 5), strict=True)), [run])
    traps = pd.read_csv(config.ROOT / "results" / "cpu" / "protocol_traps.csv")
    table = findings.errors_found(CPU, traps, findings.cost_cells(), findings.peers())
    assert "5 seeds" in table[table.error.str.contains("five images")].shown_by.item()


def test_a_run_trained_twice_is_compared_with_itself(results):
    assert findings.repeats(CPU).change_db.isna().all()
    usual, other = (experiments.planned(CPU, part)["U-HDB IKM"][0] for part in ("table3", "again"))
    for run, psnr in ((usual, 31.0), (other, 30.5)):
        write_csv(run.folder / "scores.csv",
                  pd.DataFrame({"set": "Set5", "image": ["a", "b"], "psnr_y": [psnr, psnr + 1]}))
        write_text(run.folder / "run.json", "{}")
    table = findings.repeats(CPU).set_index("variant")
    assert table.change_db["U-HDB IKM"] == pytest.approx(-0.5) and table.over_images_sd_db["U-HDB IKM"] == 0
    assert table.runs["U-HDB IKM"] == "2 of 2 runs" and table.runs["U-HDB none"] == "0 of 2 runs"
