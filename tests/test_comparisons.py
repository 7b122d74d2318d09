"""Tables, comparisons and verdicts equal a recomputation from the per-image records; nothing trained breaks nothing."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import code
from scipy.stats import t as student

from ikmlib import config
from ikmlib.config import PROFILES
from ikmlib.files import write_csv, write_text
from ikmlib.study import comparisons, experiments, notebook, records, report, stats
from ikmlib.study.experiments import planned
from ikmlib.study.records import SCORES

CPU, LONG = PROFILES["cpu"], PROFILES["cpu-long"]
random = np.random.default_rng(0)


@pytest.fixture
def results(results):
    """An empty folder of records, but for measurements that are not committed and would take long."""
    times = pd.DataFrame({"network": ["SRCNN", "U-HDN+IKM"], "ms": [1.0, 2.0], "params_fit": "yes", "fits": "neither"})
    for name in ("table1_time", "table1_cost"):
        write_csv(results / "cpu-long" / f"{name}.csv", times)
    return results


def finish(run, psnr):
    """Leave a finished run whose images, {(set, image): PSNR}, have these scores."""
    rows = [(*image, value, 0.9, value - 0.1, 0.89) for image, value in psnr.items()]
    write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=SCORES))
    write_csv(run.folder / "curve.csv", pd.DataFrame(
        {"update": [1, 2], "loss": [1.0, 0.5], "psnr_y": [20.0, 30.0], "seconds": [1.0, 2.0]}))
    write_text(run.folder / "run.json", json.dumps(
        {"id": run.id, "profile": run.profile, "spec": run.spec, "train_seconds": 3600.0}))


def fake(profile, part, seeds=range(5), sets=("Set5", "BSD100"), bonus=None):
    """Finished runs of a part with made-up scores, so that tables can be checked against arithmetic; its plan. `bonus`:
    cell -> dB."""
    plan, level = planned(profile, part), {(name, str(i)): random.uniform(28, 36) for name in sets for i in range(5)}
    for *cell, seed, run in plan.itertuples(index=False):
        if seed in seeds:
            finish(run, {image: value + random.normal(0, 0.01) + (bonus or {}).get(tuple(cell), 0)
                         for image, value in level.items()})
    return plan


def by_hand(plan, cell, sets=("Set5",)):
    """(seeds, images) of a cell's PSNR, read without pandas."""
    runs = [run for *own, _, run in plan.itertuples(index=False) if tuple(own) == cell]
    lines = [(run.folder / "scores.csv").read_text().splitlines()[1:] for run in runs]
    return np.array([[float(line.split(",")[2]) for line in file if line.split(",")[0] in sets] for file in lines])


def indexed(page, name, *index):
    return page.tables[name].set_index(list(index or ["contrast"]))


def test_summary_and_comparisons_equal_a_recomputation_from_the_per_image_records(results, executed):
    plan, page = fake(CPU, "table3"), executed("04", "cpu")
    table, found = indexed(page, "table3", "block", "attention"), indexed(page, "table3_contrasts")
    for block in ("RB", "U-HDB"):
        for attention in ("none", "IKM"):
            means = by_hand(plan, (block, attention))[:3].mean(1)   # the seeds that all variants have
            assert table.Set5_psnr_ours[block, attention] == pytest.approx(means.mean())
            assert table.Set5_psnr_sd[block, attention] == pytest.approx(means.std(ddof=1))
        ikm, vanilla = (by_hand(plan, (block, a), ("Set5", "BSD100")) for a in ("IKM", "none"))
        assert found.gain_db_ours[f"{block}: IKM − none"] == pytest.approx((ikm - vanilla).mean())
    assert list(table.index[:2]) == [("RB", "none"), ("RB", "CA")]   # the paper's order
    assert table.Set5_psnr_paper["U-HDB", "IKM"] == 37.57 and round(table.params_k_ours["RB", "SA"], 1) == 371.7
    assert found.gain_db_paper["DB: IKM − none"] == pytest.approx(0.08)
    assert found.images["DB: IKM − none"] == 10 and found.seeds["DB: IKM − none"] == 5
    assert found.seeds["DB: IKM − CA"] == 3 and found.runs["DB: IKM − CA"] == "6 of 6 runs"
    means = pd.DataFrame([pd.Series(by_hand(plan, ("RB", a), ("Set5", "BSD100")).mean(1))
                          for a in ("none", "IKM", "CA", "SA")])
    deviation, freedom = stats.residual_deviation(means)   # pooled within the architecture
    row = found.loc["RB: IKM − CA"]
    assert row.seeds_freedom == freedom == 16 - 4 - 5 + 1
    assert row.seeds_error_db == pytest.approx(deviation * (2 / 3) ** 0.5)
    d = by_hand(plan, ("RB", "IKM"), ("Set5", "BSD100"))[:3] - by_hand(plan, ("RB", "CA"), ("Set5", "BSD100"))[:3]
    assert (row.own_low_db, row.own_high_db) == pytest.approx(stats.paired(d).interval[1:])


def test_only_images_that_all_cells_have_and_weights_of_the_question(results):
    plan = planned(CPU, "table5").query("u_style == 'yes'")
    for *_, hourglass, seed, run in plan.itertuples(index=False):
        finish(run, {("Set5", "a"): 30 + (hourglass == "yes"), ("Set5", "b"): 31 + 2 * (hourglass == "yes"),
                     **({("Set5", "c"): 1.0} if seed == 1 else {})})
    both, plain = ("yes", "yes"), ("yes", "no")
    published = pd.Series({both: 38.0, plain: 37.0})
    found = comparisons.compare(records.scores(plan), {"gain": {both: 1, plain: -1}, "sum": {both: 0.5, plain: 1},
                                       "absent": {both: 1, ("no", "no"): -1}}, published)
    assert (found["gain"].mean, found["gain"].seeds, found["gain"].images) == (pytest.approx(1.5), 3, 2)
    # the pool's networks are compared on these images, too: an image that one run alone has is no scatter of trainings
    assert found["gain"].errors[1] == pytest.approx((0, 2))
    assert found["sum"].mean == pytest.approx(32 / 2 + 30.5) and found["gain"].paper == 1.0
    assert not found["absent"].known and found["absent"].runs == "not planned" and np.isnan(found["absent"].paper)


def test_nobody_looks_at_a_comparison_before_its_declared_runs_are_finished(results, executed):
    fake(CPU, "table3", seeds=(0, 1, 2), bonus={("RB", "IKM"): 1.0})
    page = executed("04", "cpu")
    found, table = indexed(page, "table3_contrasts"), indexed(page, "table3", "block", "attention")
    gain = found.loc["RB: IKM − none"]
    assert gain.runs == "6 of 10 runs" and np.isnan(gain.gain_db_ours) and np.isnan(gain.low_db)
    assert found.gain_db_ours["RB: IKM − CA"] > 0.9   # on the three seeds that are declared for both
    assert np.isnan(table.Set5_psnr_ours["RB", "IKM"]) and table.runs["RB", "IKM"] == "3 of 5 runs"
    assert table.Set5_psnr_ours["RB", "CA"] > 0
    c1 = page.verdicts["C1"]
    assert c1["verdict"] == stats.WAITS and c1["ours"] == "24 of 40 runs, 0 of 4 comparisons complete"
    assert set(c1["comparisons"].runs) == {"6 of 10 runs"} and set(c1["comparisons"].outcome) == {"waits"}
    assert c1["comparisons"].ours.isna().all()


def test_ablations_show_the_n_that_was_trained_and_count_costs_at_the_papers_size(results, executed):
    table = indexed(executed("06", "cpu"), "table5", "u_style", "hourglass")
    assert set(table.N_trained) == {1} and round(table.params_k_ours["yes", "yes"], 1) == 1390.9
    sizes = comparisons.summary(CPU, "fig8", ["Set5"]).set_index(["N", "U", "C"])
    assert sizes.params_k_ours[1, 6, 64] == pytest.approx(384.9, abs=0.1) and sizes.N_trained[4, 6, 64] == 4


def test_sets_that_no_run_scored_are_empty_and_others_are_shown(results):
    fake(LONG, "table1", sets=("embedded-test",))
    ours = comparisons.summary(LONG, "table1", ["Set5", "Urban100"])
    assert ours.Set5_psnr_ours.isna().all()
    assert list(ours["embedded-test_psnr_ours"].notna()) == [True, False, False]   # x2 alone is declared


def test_rivals_have_their_own_costs_and_c9_says_that_the_budget_is_the_same(results, executed):
    plan, page = fake(CPU, "same_budget", bonus={("U-HDN+IKM",): 0.1, ("IMDN",): 0.2}), executed("02", "cpu")
    table, found = indexed(page, "table1_budget", "network"), indexed(page, "table1_contrasts")
    assert round(table.params_k_ours["IMDN"], 1) == 694.4 and round(table.flops_g_ours["SRCNN"], 1) == 9.9
    assert table.N_trained.to_dict() == dict.fromkeys(experiments.RIVALS, "") | {"U-HDN": 4, "U-HDN+IKM": 4}
    ikm, imdn = (by_hand(plan, (name,), ("Set5", "BSD100")) for name in ("U-HDN+IKM", "IMDN"))
    assert found.gain_db_ours["U-HDN+IKM − IMDN"] == pytest.approx((ikm - imdn).mean())
    assert found.gain_db_paper["U-HDN+IKM − IMDN"] == pytest.approx(38.06 - 38.00)
    assert (found.seeds_freedom == 3 - 1).all()   # no rival's spread widens another's interval
    c9 = page.verdicts["C9, PSNR"]
    assert c9["verdict"] == "mixed" and set(c9["comparisons"].seeds) == {3}
    assert list(c9["comparisons"].comparison) == [f"U-HDN+IKM − {name}" for name in experiments.RIVALS]
    assert "without IKM" not in c9["because"]
    assert list(executed("02", "cpu-long").verdicts) == ["C9, cost"]   # the other is not declared there


def test_notebook_03_shows_the_network_that_02_shows(results, executed):
    row = indexed(executed("03", "cpu"), "table2_ours", "network").loc["U-HDN+IKM"]
    assert row.runs == "0 of 1 runs" and np.isnan(row.Set5_psnr_ours)
    finish(planned(CPU, "table1").run.item(), {("Set5", "a"): 36.0, ("Set5", "b"): 38.0})
    page = executed("03", "cpu")
    table = indexed(page, "table2_ours", "network")
    assert table.index.tolist() == ["U-HDN+IKM", "U-HDNL+IKM"]
    assert table.Set5_psnr_ours["U-HDN+IKM"] == 37.0 and table.Set5_psnr_paper["U-HDN+IKM"] == 38.06
    assert table.runs.tolist() == ["1 of 1 runs", "not planned"]
    beside = indexed(page, "table2", "method")
    assert beside.Set5_psnr["U-HDN+IKM, this study"] == 37.0 and np.isnan(beside.Set5_psnr["U-HDNL+IKM, this study"])


def test_c9_says_that_psnr_holds_without_ikm_as_well_and_counts_the_printed_costs(results, executed):
    fake(CPU, "same_budget", bonus={("U-HDN+IKM",): 0.3, ("U-HDN",): 0.2})
    said = executed("02", "cpu").verdicts
    assert said["C9, PSNR"]["verdict"] == "supported" and "without IKM as well" in said["C9, PSNR"]["because"]
    assert said["C9, cost"]["verdict"] == "not supported"
    assert said["C9, cost"]["ours"] == (
        "of Table I's rivals, 6 of 9 at x2, 6 of 9 at x3, 5 of 10 at x4 have fewer #FLOPs than U-HDN+IKM. In Table II, "
        "shown but not judged, 1 of 5 has fewer than U-HDNL+IKM; 8 of 9 at x2, 7 of 9 at x3, 8 of 10 at x4 have fewer "
        "#Params, and in Table II 1 of 5")


PARTS = {   # notebook -> part, and what would support its claims, times a bonus
    "02": ("same_budget", ("C9, PSNR",), lambda network: {"U-HDN+IKM": 1, "U-HDN": 2}.get(network, 0)),
    "04": ("table3", ("C1", "C1, U-HDB", "C2"), lambda block, attention: attention == "IKM"),
    "06": ("table5", ("C6",), lambda u_style, hourglass: (u_style == "yes") + (hourglass == "yes")),
    "09": ("fig10", ("C5",), lambda rule, batch, budget: (rule == "IsO") * np.log2(2 * batch)),
    "10": ("fig11", ("C7",), lambda order: {"U-HDN": 2, "V1": 0}.get(order, 1)),
}


@pytest.mark.parametrize(("bonus", "verdict"), [(0.1, "supported"), (-0.1, "not supported")])
@pytest.mark.parametrize("number", PARTS)
def test_verdicts_follow_the_scores(results, executed, number, bonus, verdict):
    part, claims, worth = PARTS[number]
    fake(CPU, part, bonus={cell: bonus * float(worth(*cell)) for cell in experiments.PARTS[part].cells(CPU)})
    found = executed(number, "cpu").verdicts
    assert {name: found[name]["verdict"] for name in claims} == dict.fromkeys(claims, verdict)


def test_c5_asks_for_the_batch_four_times_it_and_growth(results, executed):
    asked = executed("09", "cpu").verdicts["C5"]["comparisons"].set_index("comparison").runs
    assert len(asked) == 5 and asked.index.str.startswith("growth").sum() == 2
    assert not asked.index.str.contains("batch 1,|autograd").any()
    assert asked["growth of IsO − GO to batch 16, equal patches"] == "0 of 12 runs"


def test_growth_of_the_gain_is_along_the_least_squares_line(results, executed):
    fields = experiments.TABLE4_FIELDS
    fake(CPU, "table4", sets=("BSD100",), bonus={(k, d, "IKM"): 0.05 * field for (k, d), field in fields.items()})
    page = executed("05", "cpu")
    rows = indexed(page, "table4_contrasts")
    growth = rows.loc["growth of the gain from R = 3 to R = 9"]
    for source in ("gain_db_ours", "gain_db_paper"):
        gains = [rows[source][f"R={field} (k={k}, D={d})"] for (k, d), field in fields.items()]
        assert growth[source] == pytest.approx(6 * np.polyfit(list(fields.values()), gains, 1)[0])
    assert growth.gain_db_ours == pytest.approx(0.3, abs=0.06) and page.verdicts["C3"]["verdict"] == "supported"


@pytest.mark.parametrize(("power", "verdict"), [(-1.0, "supported"), (0.9, "mixed")])
def test_growth_that_slows_down_is_saturation(results, executed, power, verdict):
    """PSNR as a concave or a convex function of the size's logarithm."""
    sizes = {cell: run.cost[0] for cell, run in experiments.fig8(CPU).items()}
    fake(CPU, "fig8", bonus={cell: np.sign(power) * (params / 1e6) ** power for cell, params in sizes.items()})
    said, saturates = executed("07", "cpu").verdicts["C8"], "hold" if verdict == "supported" else "fail"
    assert said["verdict"] == verdict and said["ours"].startswith("growth, step by step: 6 hold (")
    assert f"dB). Saturation of the three sweeps: 3 {saturates} (" in said["ours"]


@pytest.mark.parametrize(("bonus", "verdict"), [(0.1, "supported"), (-0.1, "not supported")])
def test_the_whole_network_is_judged_alone(results, executed, bonus, verdict):
    """C1, U-HDN rests on its own five seeds, whatever waits."""
    fake(CPU, "whole", seeds=range(3, 8), bonus={("IKM",): bonus})
    page = executed("04", "cpu")
    said, row = page.verdicts["C1, U-HDN"], indexed(page, "table3_contrasts").loc["U-HDN: IKM − none"]
    assert said["verdict"] == verdict and page.verdicts["C1"]["verdict"] == stats.WAITS
    assert row.runs == "10 of 10 runs" and row.seeds == 5 and row.gain_db_ours == pytest.approx(bonus, abs=0.02)
    assert "C1, U-HDN" not in executed("04", "cpu-long").verdicts   # not declared there


@pytest.mark.parametrize(("bonus", "scatter", "verdict", "outcome", "told"), [
    (0.1, 0, "supported", "*holds*: its interval lies above 0.", "IKM gains"),
    (-0.1, 0, "not supported", "*fails*: its interval lies below 0.02 dB.", "IKM loses"),
    (-0.002, 0.006, "not supported", "*fails*: its interval lies below 0.02 dB.",
     "IKM gains nothing, or at most {:.3f} dB"),
    (0.01, 0.03, "undecided", "is *undecided*: its interval contains 0 and reaches above 0.02 dB.",
     "it is undecided whether IKM gains")])
def test_the_primary_endpoint_is_told_first_while_all_else_waits(
        results, executed, bonus, scatter, verdict, outcome, told):
    plan = planned(LONG, "table3").query("block == 'U-HDB'")
    for _, attention, seed, run in plan.itertuples(index=False):
        gain = (attention == "IKM") * (bonus + scatter * (-1) ** seed)
        finish(run, {("Set5", str(i)): 30 + i + gain + random.normal(0, 0.005) for i in range(5)})
    page, writes = executed("04", "cpu-long"), notebook.Page("04_table3_attention", LONG)
    assert {claim: said["verdict"] for claim, said in page.verdicts.items()} == {
        "C1": stats.WAITS, "C1, U-HDB": verdict, "C2": stats.UNTESTED}
    assert page.verdicts["C1"]["ours"] == "20 of 38 runs, 1 of 4 comparisons complete"
    assert "endpoint waits" in report.primary() and report.primary().endswith(   # as no notebook has judged the runs
        "1/200 of the pixels of the paper's ablations, as we read its budget, at 5 times its learning rate "
        "(`cpu-long`). Finished: 20 of 20 runs.")
    for claim, said in page.verdicts.items():
        writes.verdict(claim, **said)
    endpoint, (_, _, _, verdicts, waits) = report.primary(), report.opening().split("\n\n")
    told = told.format(*page.verdicts["C1, U-HDB"]["comparisons"].high)
    assert f"looked hardest, {told}.** " in endpoint and "with 10 seeds" in endpoint
    assert "on Set5 alone, where the paper prints +0.09 dB. This" in endpoint
    assert endpoint.endswith(f"before the runs, the gain over all test images {outcome}")
    assert f"claims: 1 {verdict} (C1 U-HDB); 1 not tested" in verdicts and "runs:** C1. Finished" in waits
    notebook.Page("04_table3_attention", CPU).verdict("C1", paper="p", ours="o", because="b", verdict="mixed")
    assert "runs:** nothing; at `cpu-long`: C1. Finished" in report.opening()
    row = "| x | [04](results/cpu/notebooks/04_table3_attention.ipynb) | {} |"
    front = f"<!-- map -->\n\n{row}\n\n<!-- end of map -->"
    there = "at `cpu-long` ([04](results/cpu-long/notebooks/04_table3_attention.ipynb))"
    made = report.readme(f"<!-- answer -->\n\nold\n\n<!-- end of answer -->\n\n{front.format('old')}")
    assert f"C1: **mixed**; C1 U-HDB: **{verdict}** {there}" in made and report.readme(made) == made
    assert made.startswith(f"<!-- answer -->\n\n{endpoint}\n\n<!-- end of answer -->")


def test_own_thresholds_are_shown_and_change_no_verdict(results, executed):
    plan, shown = fake(CPU, "fig9"), []
    judged = executed("08", "cpu").tables["fig9_contrasts"]
    cell, = (c for c in code(config.ROOT / "notebooks" / "08_fig9_threshold.ipynb") if "def extra_runs" in c)

    def show(*thresholds):
        exec(cell, {"extra_thresholds": thresholds, "runs": plan, "page": SimpleNamespace(anew=False), "pd": pd,
                    "replace": replace, "records": records, "experiments": experiments, "comparisons": comparisons,
                    "notebook": notebook, "display": lambda table: shown.append(table.data.iloc[0])})

    with pytest.raises(ValueError, match="'mean' is one of the declared thresholds"):
        show(0.2, "mean")
    with pytest.raises(ValueError, match="unknown tau 'high'"):
        show("high")
    show(0.2)
    for run in plan[plan.tau == 0.0].run:
        finish(replace(run, arch=replace(run.arch, tau=0.2)), {("Set5", str(i)): 99.0 for i in range(5)})
    show(0.2)
    assert [(row.contrast, row.runs) for row in shown] == [("threshold 0.2 minus threshold 0", "3 of 6 runs"),
                                                           ("threshold 0.2 minus threshold 0", "6 of 6 runs")]
    assert float(shown[1]["gain db ours"]) > 50
    pd.testing.assert_frame_equal(executed("08", "cpu").tables["fig9_contrasts"], judged)


def test_the_zero_threshold_may_be_equal_and_the_median_must_be_better(results, executed):
    fake(CPU, "fig9", bonus={(0.0,): 0.1, ("median",): 0.3})
    page = executed("08", "cpu")
    cost = page.tables["fig9_cost"]
    assert list(cost.threshold) == ["tau = 0.0", "tau = mean", "tau = median"] and (cost.milliseconds > 0).all()
    assert page.verdicts["C4, zero"]["verdict"] == page.verdicts["C4, median"]["verdict"] == "supported"
    assert "times as long" in page.verdicts["C4, median"]["ours"]


@pytest.mark.parametrize("number", ["02", "03", "04", "05", "06", "07", "08", "09", "10", "12"])
def test_nothing_trained_is_not_tested_and_draws(results, executed, number):
    page = executed(number, "cpu")
    open_claims = {v["verdict"] for v in page.verdicts.values() if not v.get("any_profile")}
    assert open_claims == {stats.UNTESTED if number == "03" else stats.WAITS}
    for name, table in page.tables.items():
        if "runs" in table and "contrast" in table and number not in ("03", "09"):   # cpu declares not all of them
            assert table.gain_db_ours.isna().all() and not table.runs.eq("not planned").any(), name


def test_paper_numbers_are_the_ones_of_the_text():
    table = comparisons.paper("table3")
    assert len(table) == 16 and set(table.attention) == {"none", "CA", "SA", "IKM"}


def test_the_gain_is_read_off_in_other_ways_without_a_verdict(results, executed):
    plan = fake(CPU, "table3", bonus={("DB", "IKM"): 0.1})
    for attention, level in (("IKM", 30.2), ("none", 30.0)):   # better along the way, no better at the end
        for run in plan.query(f"block == 'DB' and attention == '{attention}'").run:
            end = run.updates
            write_csv(run.folder / "curve.csv", pd.DataFrame({"update": [end // 10, 8 * end // 10, end], "loss": 1.0,
                                                              "psnr_y": [20.0, level, 30.0], "seconds": 1.0}))
    fake(CPU, "rates", bonus={("DB", "IKM", 2.0): 0.4})
    table = executed("04", "cpu").tables["table3_sensitivity"]
    of_db = table[table.architecture == "DB"].set_index("reading")
    ikm, vanilla = (by_hand(plan, ("DB", attention), ("Set5", "BSD100")) for attention in ("IKM", "none"))
    first = of_db.loc["as judged, test images"]
    assert first.gain_db_ours == pytest.approx((ikm - vanilla).mean()) and first.seeds == 5
    assert of_db.gain_db_ours["validation images, after the last update"] == 0
    assert of_db.gain_db_ours["validation images, last 30 % of the updates"] == pytest.approx(0.1)
    assert of_db.gain_db_ours["rate x 2"] == pytest.approx(0.4, abs=0.03) and of_db.seeds["rate x 2"] == 1
    quarter = of_db.loc["a quarter of the updates"]
    assert np.isnan(quarter.gain_db_ours) and quarter.runs == "0 of 6 runs"
    d = ikm - vanilla
    errors = d.mean(1).std(ddof=1) / d.shape[0] ** 0.5, d.mean(0).std(ddof=1) / d.shape[1] ** 0.5
    half = np.hypot(*(error * student.ppf(0.975, n - 1) for error, n in zip(errors, d.shape, strict=True)))
    assert (first.own_low_db, first.own_high_db) == pytest.approx((d.mean() - half, d.mean() + half))


def test_the_discarded_first_evidence_says_what_its_runs_said(results, executed):
    """The numbers that stood in the committed tables while the runs' own records did."""
    table = executed("04", "cpu").tables["table3_sensitivity"]
    said = table[table.reading.str.contains("first recipe")].set_index("architecture")
    assert said.gain_db_ours.to_dict() == pytest.approx(
        {"RB": 0.004227, "DB": 0.044400, "RDB": 0.042449, "U-HDB": 0.023520}, abs=1e-6)
    assert list(said.gain_db_sd) == pytest.approx([0.006000, 0.017392, 0.028347, 0.067946], abs=1e-6)
    assert set(said.runs) == {"10 of 10 runs"} and list(said.own_low_db > 0) == [False, True, True, False]
    own = indexed(executed("12", "cpu"), "controls_first")
    assert list(own.loc["U-HDB: IKM − shuffled", ["gain_db_ours", "low_db", "high_db"]]) == pytest.approx(
        [-0.019649, -0.062853, 0.023555], abs=2e-6)
    assert list(own.loc["RB: IKM − IKM, frozen at test", ["gain_db_ours", "low_db", "high_db"]]) == pytest.approx(
        [-0.003340, -0.006138, -0.000543], abs=2e-6)


@pytest.mark.parametrize(("bonus", "own", "scale"), [
    ({"IKM": 0.1}, "supported", "not supported"),
    ({"IKM": 0.1, "constant 1.5": 0.15, "none, weights x 1.5": 0.1, experiments.FASTER: 0.1, "shuffled": 0.15},
     "not supported", "supported")])
def test_verdicts_on_the_controls_follow_the_scores(results, executed, bonus, own, scale):
    plan = fake(CPU, "controls", bonus={(b, k): value for b in ("U-HDB", "RB") for k, value in bonus.items()})
    for run in plan.query("control == 'IKM'").run:   # at test as much worse than IKM as constant attention is
        worse = bonus["IKM"] - bonus.get("constant 1.5", 0) + (0.001 if own == "supported" else -0.009)
        tested = run.scores()[["set", "image", "psnr_y"]]
        tested = tested.assign(frozen=tested.psnr_y - worse, swapped=tested.psnr_y - worse).drop(columns="psnr_y")
        write_csv(run.folder / "controls.csv", tested)
    page = executed("12", "cpu")
    assert page.tables["controls_order"].gain_db_ours.notna().all()
    at_test = page.tables["controls_own"].query("contrast.str.contains('at test')")
    assert len(at_test) == 4
    assert (at_test.seeds_error_db < 1e-9).all()   # the same networks: what trainings differ by is not in it
    assert {name: found["verdict"] for name, found in page.verdicts.items()} == {
        f"{name}, {block}": verdict for block in ("U-HDB", "RB")
        for name, verdict in (("E1, own attention", own), ("E2, scale", scale))}
    plan.query("block == 'RB' and control == 'shuffled'").run.iloc[2].folder.joinpath("run.json").unlink()
    waiting = executed("12", "cpu").verdicts
    assert waiting["E1, own attention, RB"]["verdict"] == stats.WAITS
    assert waiting["E1, own attention, U-HDB"]["verdict"] == own


def test_a_plan_knows_how_much_is_finished(results):
    plan = planned(CPU, "fig10")
    finish(plan.run.iloc[0], {("Set5", "a"): 30.0})
    (plan.run.iloc[1].folder).mkdir(parents=True)
    (plan.run.iloc[1].folder / "diverged.json").write_text(json.dumps({}))
    assert records.runs_in_words(plan.run) == "1 of 21 runs, 1 diverged"
    scores = records.scores(plan)
    assert list(scores.columns) == ["rule", "batch", "budget", "seed", "run", "state", *SCORES]
    assert len(scores) == len(plan) and scores.psnr_y.notna().sum() == 1   # a row a declared run, with scores or not
    assert scores.state.value_counts().to_dict() == {"missing": 19, "diverged": 1, "finished": 1}
    first, second = (tuple(plan.iloc[i][["rule", "batch", "budget"]]) for i in (0, 3))
    waiting = comparisons.compare(scores, {"d": comparisons.minus(first, second)})["d"]
    assert not waiting.known and waiting.runs == "1 of 6 runs, 1 diverged"


def frame_of(spreads, seeds=3, family=None):
    """Scores of networks that scatter over seeds by these standard deviations, and their families."""
    draw = np.random.default_rng(3)
    rows = [(name, seed, f"{name}{seed}", "finished", "Set5", str(i), value + 0.1 * i)
            for name, spread in spreads.items() for seed in range(seeds) for value in [draw.normal(30, spread)]
            for i in range(4)]
    frame = pd.DataFrame(rows, columns=["network", "seed", "run", "state", "set", "image", "psnr_y"])
    return frame.assign(family=frame.network.map(family or {}))


def test_only_like_networks_are_pooled_and_no_others_widen_an_interval():
    spreads = {"A": 0.01, "B": 0.01, "C": 0.01, "noisy": 1.0}
    questions = {"B − A": comparisons.minus("B", "A"), "noisy − A": comparisons.minus("noisy", "A")}
    like = frame_of(spreads, family=dict.fromkeys("ABC", "like") | {"noisy": "other"})
    found = comparisons.compare(like, questions, family="family")
    assert found["B − A"].errors[1][1] == (3 - 1) * (3 - 1) and found["B − A"].high - found["B − A"].low < 0.1
    assert found["noisy − A"].interval[1:] == (found["noisy − A"].own_low, found["noisy − A"].own_high)
    every = comparisons.compare(like, questions)["B − A"]
    assert every.high - every.low > 1   # what pooling with another kind of network does
    tests = comparisons.compare(frame_of(spreads, family={"A": "like", "C": "like"}), questions, family="family")
    assert tests["B − A"].errors[1][1] == 3 - 1   # B is in no family


def answers(**means):
    """Differences with a standard error of 0.01 dB, known to three seeds and many images."""
    errors = ((0.01, 1000),)
    half = stats.half_width(errors)
    return {name: stats.Difference(m, m - half, m + half, 3, 100, errors=errors, own_errors=errors)
            for name, m in means.items()}


def test_all_hold_needs_no_correction_and_single_ones_do():
    def outcome(found, **options):
        words = comparisons.claim(found, CPU, paper="p", holds="h", correct=stats.holm, **options)
        return words["verdict"], list(words["comparisons"].outcome)

    together = answers(a=0.022, b=0.022, c=0.022, d=0.022)   # p = 0.03 each
    assert outcome(together) == ("supported", ["holds"] * 4)
    assert outcome(answers(a=0.022, b=0.022, c=0.022, d=0.0)) == ("undecided", ["undecided"] * 4)
    assert outcome({"a": together["a"]}, among=together) == ("undecided", ["undecided"])
    assert outcome({"a": together["a"]}) == ("supported", ["holds"])


def test_a_claims_rows_have_both_intervals_and_one_seed_is_not_judged():
    few = {"a": stats.paired(random.normal(1, 0.1, 20))}
    words = comparisons.claim(few, CPU, paper="p", holds="h")
    row = words["comparisons"].iloc[0]
    assert words["verdict"] == stats.WAITS and row.outcome == "waits" and row.ours > 0 and row.seeds == 1
    assert list(words["comparisons"].columns) == comparisons.JUDGED
    assert (row.low, row.own_low) == (few["a"].low, few["a"].own_low) and row.detectable == few["a"].detectable


def test_a_claim_says_what_the_comparisons_own_deviations_would_give():
    found = answers(a=0.05)
    because = comparisons.claim(found, CPU, paper="p", holds="h")["because"]
    assert because == "h Every comparison rests on 3 seeds or more."
    wide = {"a": replace(found["a"], own_errors=((0.1, 2),))}
    words = comparisons.claim(wide, CPU, paper="p", holds="h")
    assert words["verdict"] == "supported"
    assert words["because"].endswith("By each comparison's own standard deviation the verdict would be: undecided.")


def test_at_least_as_good_has_the_effect_that_lies_above_its_margin():
    found = answers(a=0.0)
    plain, within = (comparisons.claim(found, CPU, paper="p", holds="h", margin=margin)["comparisons"].detectable.item()
                     for margin in (0.0, 0.02))
    assert plain == found["a"].detectable and within == pytest.approx(plain - 0.02)


def test_the_summary_gives_the_range_of_each_outcome():
    found = answers(a=0.05, b=0.07, c=-0.05)
    assert comparisons.claim(found, CPU, paper="p", holds="h")["ours"] == (
        "3 comparisons: 2 hold (+0.050 to +0.070 dB), 1 fails (-0.050 dB)")


def test_what_a_profile_does_not_plan_is_not_tested_there(results):
    scores = records.scores(planned(LONG, "controls"))
    found = comparisons.compare(scores, {name: comparisons.minus(("U-HDB", name), ("U-HDB", "none"))
                                         for name in ("constant 1.5", "none, weights x 1.5")})
    one = {"constant 1.5": found["constant 1.5"]}
    assert comparisons.claim(one, LONG, paper="p", holds="h")["verdict"] == stats.WAITS
    words = comparisons.claim(found, LONG, paper="p", holds="h")
    assert words["verdict"] == stats.UNTESTED and words["because"].endswith("not all that a verdict needs is planned.")
