"""Tables, contrasts and verdicts equal a recomputation from the per-image records; nothing trained breaks nothing."""
import json

import numpy as np
import pandas as pd
import pytest

from ikmlib import config
from ikmlib.config import PROFILES
from ikmlib.files import write_csv, write_text
from ikmlib.models import cost
from ikmlib.study import artefacts, comparisons, experiments, stats
from ikmlib.study.experiments import planned
from ikmlib.study.records import SCORES

CPU, LONG = PROFILES["cpu"], PROFILES["cpu-long"]
random = np.random.default_rng(0)


def fake(profile, part, seeds=range(5), sets=("Set5", "BSD100"), bonus=None):
    """Finished runs of a part with made-up scores, so that tables can be checked against arithmetic; its declared runs.
    """
    wanted = planned(profile, part)
    level = {name: random.uniform(28, 36, 5) for name in sets}
    for label, runs in wanted.items():
        for run in (run for run in runs if run.seed in seeds):
            rows = [(name, str(i), level[name][i] + random.normal(0, 0.01) + (bonus or {}).get(label, 0), 0.9,
                     level[name][i] - 0.1, 0.89) for name in sets for i in range(5)]
            write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=SCORES[:6]))
            write_csv(run.folder / "curve.csv", pd.DataFrame(
                {"update": [1, 2], "loss": [1.0, 0.5], "psnr_y": [20.0, 30.0], "seconds": [1.0, 2.0]}))
            write_text(run.folder / "run.json", "{}")
    return wanted


def by_hand(runs, name="Set5"):
    """(seeds, images) of PSNR, read without pandas."""
    lines = [(run.folder / "scores.csv").read_text().splitlines()[1:] for run in runs]
    return np.array([[float(line.split(",")[2]) for line in file if line.startswith(name + ",")] for file in lines])


def test_summary_and_contrasts_equal_a_recomputation_from_the_per_image_records(results, executed):
    runs, page = fake(CPU, "table3"), executed("04", "cpu")
    table, contrasts = page.tables["table3"].set_index("variant"), page.tables["table3_contrasts"].set_index("contrast")
    for block in ("RB", "U-HDB"):
        for attention in ("none", "IKM"):
            label = f"{block} {attention}"
            means = by_hand(runs[label][:3]).mean(1)   # the seeds that all variants have
            assert table.Set5_psnr_ours[label] == pytest.approx(means.mean())
            assert table.Set5_psnr_sd[label] == pytest.approx(means.std(ddof=1))
        both = [np.hstack([by_hand(runs[f"{block} {a}"], name) for name in ("Set5", "BSD100")])
                for a in ("IKM", "none")]
        assert contrasts.gain_db_ours[f"{block}: IKM − none"] == pytest.approx((both[0] - both[1]).mean())
    assert list(table.index[:2]) == ["RB none", "RB CA"]   # the paper's order
    assert table.Set5_psnr_paper["U-HDB IKM"] == 37.57 and round(table.params_k_ours["RB SA"], 1) == 371.7
    assert contrasts.gain_db_paper["DB: IKM − none"] == pytest.approx(0.08)
    assert contrasts.images["DB: IKM − none"] == 10 and contrasts.seeds["DB: IKM − none"] == 5
    assert contrasts.seeds["DB: IKM − CA"] == 3 and contrasts.runs["DB: IKM − CA"] == "6 of 6 runs"


def test_deviations_are_pooled_within_an_architecture(results, executed):
    runs = fake(CPU, "table3")
    row = executed("04", "cpu").tables["table3_contrasts"].set_index("contrast").loc["RB: IKM − CA"]
    means = pd.DataFrame({label: {run.seed: pd.read_csv(run.folder / "scores.csv").psnr_y.mean() for run in of}
                          for label, of in runs.items() if label.startswith("RB")}).T
    deviation, freedom = stats.residual_deviation(means)
    assert row.seeds_freedom == freedom == 16 - 4 - 5 + 1
    assert row.seeds_error_db == pytest.approx(deviation * (2 / 3) ** 0.5)


def test_nobody_looks_at_a_comparison_before_its_declared_runs_are_finished(results, executed):
    fake(CPU, "table3", seeds=(0, 1, 2), bonus={"RB IKM": 1.0})
    page = executed("04", "cpu")
    contrasts = page.tables["table3_contrasts"].set_index("contrast")
    gain = contrasts.loc["RB: IKM − none"]
    assert gain.runs == "6 of 10 runs" and np.isnan(gain.gain_db_ours) and np.isnan(gain.low_db)
    assert contrasts.gain_db_ours["RB: IKM − CA"] > 0.9   # on the three seeds that are declared for both
    table = page.tables["table3"].set_index("variant")
    assert np.isnan(table.Set5_psnr_ours["RB IKM"]) and table.runs["RB IKM"] == "3 of 5 runs"
    assert table.Set5_psnr_ours["RB CA"] > 0
    found = page.verdicts
    assert found["C1"]["verdict"] == "not tested at this budget" and "6 of 10 runs" in found["C1"]["ours"]


def test_ablations_show_the_n_that_was_trained_and_count_costs_at_the_papers_size(results, executed):
    table = executed("06", "cpu").tables["table5"].set_index("variant")
    assert set(table.N_trained) == {1} and round(table.params_k_ours["U-style + hourglass"], 1) == 1390.9
    sizes = comparisons.summary(CPU, "fig8", ["Set5"]).set_index("variant")
    assert sizes.params_k_ours["N=1"] == pytest.approx(384.9, abs=0.1) and sizes.N_trained["N=4"] == 4


def test_sets_that_no_run_scored_are_empty_and_others_are_shown(results):
    fake(LONG, "table1", sets=("embedded-test",))
    ours = comparisons.summary(LONG, "table1", ["Set5", "Urban100"], artefacts.table1_published())
    assert ours.Set5_psnr_ours.isna().all() and ours["embedded-test_psnr_ours"].notna().all()
    states = artefacts.set_states(LONG, planned(LONG, "table1"), ["Set5", "Urban100"])
    rows = artefacts.by_set(ours, states)
    assert set(rows[rows["set"] == "embedded-test"].state) == {"scored"}
    assert set(rows[rows["set"] == "Set5"].state) <= {"not installed", "installed, but not scored by these runs"}
    assert rows[(rows["set"] == "Set5") & (rows.variant == "x2")].psnr_paper.item() == 38.06


PARTS = {   # notebook -> part, and what would support its claims, times a bonus
    "04": ("table3", ("C1", "C1, U-HDB", "C2"), lambda label, run: label.endswith("IKM")),
    "06": ("table5", ("C6",), lambda label, run: ("U-style" in label) + ("hourglass" in label)),
    "09": ("fig10", ("C5",), lambda label, run: label.startswith("IsO") * np.log2(2 * run.batch)),
    "10": ("fig11", ("C7",), lambda label, run: {"U-HDN": 2, "V1": 0}.get(label, 1)),
}


@pytest.mark.parametrize(("bonus", "verdict"), [(0.1, "supported"), (-0.1, "not supported")])
@pytest.mark.parametrize("number", PARTS)
def test_verdicts_follow_the_scores(results, executed, number, bonus, verdict):
    part, claims, worth = PARTS[number]
    labelled = experiments.PARTS[part][1](CPU)
    fake(CPU, part, bonus={label: bonus * float(worth(label, run)) for label, run in labelled.items()})
    found = executed(number, "cpu").verdicts
    assert {name: found[name]["verdict"] for name in claims} == dict.fromkeys(claims, verdict)


def test_c5_asks_for_the_batch_four_times_it_and_growth(results, executed):
    page = executed("09", "cpu")
    said = page.verdicts["C5"]["ours"]
    assert said.count(" runs") == 5 and said.count("growth") == 2 and "batch 1," not in said and "autograd" not in said
    assert "growth of IsO − GO to batch 16, equal patches 0 of 12 runs" in said


def test_slope_of_the_gain_is_least_squares(results, executed):
    fields = experiments.TABLE4_FIELDS
    fake(CPU, "table4", sets=("BSD100",),
         bonus={f"k={k} D={d} IKM": 0.05 * field for (k, d), field in fields.items()})
    page = executed("05", "cpu")
    rows = page.tables["table4_contrasts"].set_index("contrast")
    slope = rows.loc["growth of the gain per pixel of R"]
    for source in ("gain_db_ours", "gain_db_paper"):
        gains = [rows[source][f"R={field} (k={k}, D={d})"] for (k, d), field in fields.items()]
        assert slope[source] == pytest.approx(np.polyfit(list(fields.values()), gains, 1)[0])
    assert slope.gain_db_ours == pytest.approx(0.05, abs=0.01) and page.verdicts["C3"]["verdict"] == "supported"


@pytest.mark.parametrize(("power", "verdict"), [(-1.0, "supported"), (0.9, "mixed")])
def test_growth_that_slows_down_is_saturation(results, executed, power, verdict):
    """PSNR as a concave or a convex function of the size's logarithm."""
    sizes = {label: cost(run.arch, 2)[0] for label, run in experiments.fig8(CPU).items()}
    fake(CPU, "fig8", bonus={label: np.sign(power) * (params / 1e6) ** power for label, params in sizes.items()})
    assert executed("07", "cpu").verdicts["C8"]["verdict"] == verdict


def test_the_zero_threshold_may_be_equal_and_the_median_must_be_better(results, executed):
    fake(CPU, "fig9", bonus={"tau = 0.0": 0.1, "tau = median": 0.3})
    page = executed("08", "cpu")
    cost = page.tables["fig9_cost"]
    assert list(cost.threshold) == ["tau = 0.0", "tau = mean", "tau = median"] and (cost.milliseconds > 0).all()
    assert page.verdicts["C4, zero"]["verdict"] == page.verdicts["C4, median"]["verdict"] == "supported"
    assert "times as long" in page.verdicts["C4, median"]["ours"]


def test_our_rows_stand_among_the_methods(results):
    runs = fake(LONG, "table1")
    ours = comparisons.summary(LONG, "table1", ["Set5"], artefacts.table1_published())
    labels = {f"x{scale}": (scale, "U-HDN+IKM, this study") for scale in (2, 3, 4)}
    table = artefacts.among_methods(comparisons.paper("table1"), ours, labels)
    assert len(table) == len(comparisons.paper("table1")) + 3
    row = table[(table.scale == 3) & (table.method == "U-HDN+IKM, this study")]
    assert row.Set5_psnr.item() == pytest.approx(by_hand(runs["x3"]).mean()) and round(row.params_k.item()) == 1402
    for profile, verdicts in ((CPU, {"not tested at this budget"}), (PROFILES["paper"], {"not supported", "mixed"})):
        assert artefacts.c9(table, "U-HDN+IKM", profile)["verdict"] in verdicts
    best = table.assign(Set5_psnr=table.Set5_psnr.where(table.method != "U-HDN+IKM, this study", 40.0))
    assert artefacts.c9(best, "U-HDN+IKM", PROFILES["paper"])["verdict"] == "supported"


def test_rounding_is_measured_on_our_own_scores(results):
    table = artefacts.y_rounding(fake(LONG, "table1")).set_index("set")
    assert list(table.index) == ["Set5", "BSD100"] and (table.measured_db.between(0.05, 0.15)).all()


@pytest.mark.parametrize("number", ["02", "03", "04", "05", "06", "07", "08", "09", "10", "12"])
def test_nothing_trained_is_not_tested_and_draws(results, executed, number):
    page = executed(number, "cpu")
    assert {v["verdict"] for v in page.verdicts.values()} == {"not tested at this budget"}
    for name, table in page.tables.items():
        if "runs" in table and "contrast" in table and number != "03":
            assert table.gain_db_ours.isna().all() and not table.runs.eq("not planned").any(), name


def test_paper_numbers_are_the_ones_of_the_text():
    table = comparisons.paper("table3")
    assert len(table) == 16 and set(table.attention) == {"none", "CA", "SA", "IKM"}
    assert (config.PAPER / "table1.csv").exists() and json.dumps(sorted(artefacts.table1_published().index)) == (
        '["x2", "x3", "x4"]')


def test_rows_that_wait_for_runs_or_rest_on_other_numbers_of_seeds_say_so(results, executed):
    fake(CPU, "table3", seeds=(0, 1, 2))
    names = comparisons.with_seeds(executed("04", "cpu").tables["table3_contrasts"])
    assert names[2] == "RB: IKM − none (6 of 10 runs)" and names[0] == "RB: CA − none"
    fake(CPU, "table3")
    assert comparisons.with_seeds(executed("04", "cpu").tables["table3_contrasts"])[2] == "RB: IKM − none (5 seeds)"


def test_the_gain_is_read_off_in_other_ways_without_a_verdict(results, executed):
    runs = fake(CPU, "table3", bonus={"DB IKM": 0.1})
    for level, label in ((30.2, "DB IKM"), (30.0, "DB none")):   # better along the way, no better at the end
        for run in runs[label]:
            end = run.updates
            write_csv(run.folder / "curve.csv", pd.DataFrame({"update": [end // 10, 8 * end // 10, end], "loss": 1.0,
                                                              "psnr_y": [20.0, level, 30.0], "seconds": 1.0}))
    fake(CPU, "rates", bonus={"DB IKM, rate x 2": 0.4})
    table = executed("04", "cpu").tables["table3_sensitivity"]
    of_db = table[table.architecture == "DB"].set_index("reading")
    pairs = zip(runs["DB IKM"], runs["DB none"], strict=True)
    gain = np.mean([by_hand([a], name).mean() - by_hand([b], name).mean() for a, b in pairs
                    for name in ("Set5", "BSD100")])
    assert of_db.gain_db_ours["as judged, test images"] == pytest.approx(gain) and of_db.seeds.iloc[0] == 5
    assert of_db.gain_db_ours["validation images, after the last update"] == 0
    assert of_db.gain_db_ours["validation images, last 30 % of the updates"] == pytest.approx(0.1)
    assert of_db.gain_db_ours["rate x 2"] == pytest.approx(0.4, abs=0.03) and of_db.seeds["rate x 2"] == 1
    quarter = of_db.loc["a quarter of the updates"]
    assert np.isnan(quarter.gain_db_ours) and quarter.runs == "0 of 6 runs"
    assert of_db.runs["the same question under the first recipe"] == "0 of 10 runs"
