"""Tables, comparisons and verdicts equal a recomputation from the per-image records; nothing trained breaks nothing."""
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from ikmlib.config import PROFILES
from ikmlib.files import write_csv, write_text
from ikmlib.study import comparisons, experiments, records, stats
from ikmlib.study.experiments import planned
from ikmlib.study.records import SCORES

CPU, LONG = PROFILES["cpu"], PROFILES["cpu-long"]
random = np.random.default_rng(0)


@pytest.fixture
def results(results):
    """An empty folder of records, but for tables of measurements that would take long."""
    times = pd.DataFrame({"network": ["SRCNN", "U-HDN+IKM"], "ms": [1.0, 2.0], "params_fit": "yes", "fits": "neither"})
    for profile in ("cpu", "cpu-long"):
        for name, table in (("table1_time", times), ("table1_cost", times), ("table2_cost", times)):
            write_csv(results / profile / f"{name}.csv", table)
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


def test_only_images_that_all_cells_have_and_weights_of_the_question(results):
    plan = planned(CPU, "table5").query("u_style == 'yes'")
    for *_, hourglass, seed, run in plan.itertuples(index=False):
        finish(run, {("Set5", "a"): 30 + (hourglass == "yes"), ("Set5", "b"): 31 + 2 * (hourglass == "yes"),
                     **({("Set5", "c"): 1.0} if seed == 1 else {})})
    both, plain = ("yes", "yes"), ("yes", "no")
    published = pd.Series({both: 38.0, plain: 37.0})
    found = comparisons.compare(plan, {"gain": {both: 1, plain: -1}, "sum": {both: 0.5, plain: 1},
                                       "absent": {both: 1, ("no", "no"): -1}}, published)
    assert (found["gain"].mean, found["gain"].seeds, found["gain"].images) == (pytest.approx(1.5), 3, 2)
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
    assert page.verdicts["C1"]["verdict"] == stats.UNTESTED and "6 of 10 runs" in page.verdicts["C1"]["ours"]


def test_ablations_show_the_n_that_was_trained_and_count_costs_at_the_papers_size(results, executed):
    table = indexed(executed("06", "cpu"), "table5", "u_style", "hourglass")
    assert set(table.N_trained) == {1} and round(table.params_k_ours["yes", "yes"], 1) == 1390.9
    sizes = comparisons.summary(CPU, "fig8", ["Set5"]).set_index(["N", "U", "C"])
    assert sizes.params_k_ours[1, 6, 64] == pytest.approx(384.9, abs=0.1) and sizes.N_trained[4, 6, 64] == 4


def test_sets_that_no_run_scored_are_empty_and_others_are_shown(results):
    fake(LONG, "table1", sets=("embedded-test",))
    ours = comparisons.summary(LONG, "table1", ["Set5", "Urban100"])
    assert ours.Set5_psnr_ours.isna().all() and ours["embedded-test_psnr_ours"].notna().all()


def test_rivals_have_their_own_costs_and_c9_says_that_the_budget_is_the_same(results, executed):
    plan, page = fake(CPU, "same_budget", bonus={("U-HDN+IKM",): 0.1, ("IMDN",): 0.2}), executed("02", "cpu")
    table, found = indexed(page, "table1_budget", "network"), indexed(page, "table1_contrasts")
    assert round(table.params_k_ours["IMDN"], 1) == 694.4 and round(table.flops_g_ours["SRCNN"], 1) == 9.9
    assert table.N_trained.to_dict() == dict.fromkeys(experiments.RIVALS, "") | {"U-HDN": 4, "U-HDN+IKM": 4}
    ikm, imdn = (by_hand(plan, (name,), ("Set5", "BSD100")) for name in ("U-HDN+IKM", "IMDN"))
    assert found.gain_db_ours["U-HDN+IKM − IMDN"] == pytest.approx((ikm - imdn).mean())
    assert found.gain_db_paper["U-HDN+IKM − IMDN"] == pytest.approx(38.06 - 38.00)
    assert (found.seeds_freedom == (7 - 1) * (3 - 1)).all()   # deviations of all seven networks
    c9 = page.verdicts["C9, Table I"]
    assert c9["ours"].startswith("same budget, x2: ") and c9["verdict"] == "mixed" and c9["seeds"] == 3
    assert list(c9["comparisons"]) == [f"U-HDN+IKM − {name}" for name in experiments.RIVALS]
    assert not executed("02", "cpu-long").verdicts   # not declared there


PARTS = {   # notebook -> part, and what would support its claims, times a bonus
    "02": ("same_budget", ("C9, Table I",), lambda network: {"U-HDN+IKM": 1, "U-HDN": 2}.get(network, 0)),
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
    said = executed("09", "cpu").verdicts["C5"]["ours"]
    assert said.count(" runs") == 5 and said.count("growth") == 2 and "batch 1," not in said and "autograd" not in said
    assert "growth of IsO − GO to batch 16, equal patches 0 of 12 runs" in said


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
    assert executed("07", "cpu").verdicts["C8"]["verdict"] == verdict


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
    assert {v["verdict"] for v in page.verdicts.values()} == {stats.UNTESTED}
    for name, table in page.tables.items():
        if "runs" in table and "contrast" in table and number != "03":
            assert table.gain_db_ours.isna().all() and not table.runs.eq("not planned").any(), name


def test_paper_numbers_are_the_ones_of_the_text():
    table = comparisons.paper("table3")
    assert len(table) == 16 and set(table.attention) == {"none", "CA", "SA", "IKM"}


def test_rows_that_wait_for_runs_or_rest_on_other_numbers_of_seeds_say_so(results):
    questions = {"CA": comparisons.minus(("RB", "CA"), ("RB", "none")),
                 "IKM": comparisons.minus(("RB", "IKM"), ("RB", "none"))}
    plan = fake(CPU, "table3", seeds=(0, 1, 2))
    assert comparisons.with_seeds(comparisons.compare(plan, questions)) == ["CA", "IKM (6 of 10 runs)"]
    assert comparisons.with_seeds(comparisons.compare(fake(CPU, "table3"), questions)) == [
        "CA (3 seeds)", "IKM (5 seeds)"]


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
    ({"IKM": 0.1, "constant 1.5": 0.15, "none, weights x 1.5": 0.1, "shuffled": 0.15}, "not supported", "supported")])
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
    assert waiting["E1, own attention, RB"]["verdict"] == stats.UNTESTED
    assert waiting["E1, own attention, U-HDB"]["verdict"] == own


def test_a_plan_knows_its_factors_and_how_much_is_finished(results):
    plan = planned(CPU, "fig10")
    assert records.factors(plan) == ["rule", "batch", "budget"]
    finish(plan.run.iloc[0], {("Set5", "a"): 30.0})
    (plan.run.iloc[1].folder).mkdir(parents=True)
    (plan.run.iloc[1].folder / "diverged.json").write_text(json.dumps({}))
    assert records.runs_in_words(plan.run) == "1 of 33 runs, 1 diverged"
    assert list(records.scores(plan).columns) == ["rule", "batch", "budget", "seed", *SCORES]
