"""Tables, contrasts and verdicts equal a recomputation from the per-image records; nothing trained breaks nothing."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ikmlib import artefacts, config, evidence, experiments
from ikmlib.config import PROFILES
from ikmlib.files import write_csv, write_text
from ikmlib.study import SCORES

CPU = PROFILES["cpu"]
random = np.random.default_rng(0)


def fake(wanted, seeds=(0, 1, 2), sets=("Set5", "BSD100"), bonus=None):
    """Finished runs with made-up scores, so that tables can be checked against arithmetic."""
    done = {label: [run for run in runs if run.seed in seeds] for label, runs in wanted.items()}
    level = {name: random.uniform(28, 36, 5) for name in sets}
    for label, runs in done.items():
        for run in runs:
            rows = [(name, str(i), level[name][i] + random.normal(0, 0.01) + (bonus or {}).get(label, 0), 0.9,
                     level[name][i] - 0.1, 0.89) for name in sets for i in range(5)]
            write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=SCORES[:6]))
            write_csv(run.folder / "curve.csv", pd.DataFrame(
                {"update": [1, 2], "loss": [1.0, 0.5], "psnr_y": [20.0, 30.0], "seconds": [1.0, 2.0]}))
            write_text(run.folder / "run.json", "{}")
    return done


def by_hand(runs, name="Set5"):
    """(seeds, images) of PSNR, read without pandas."""
    lines = [(run.folder / "scores.csv").read_text().splitlines()[1:] for run in runs]
    return np.array([[float(line.split(",")[2]) for line in file if line.startswith(name + ",")] for file in lines])


def test_summary_and_contrasts_equal_a_recomputation_from_the_per_image_records(results):
    wanted = experiments.table3(CPU)
    done = fake(wanted)
    published = artefacts.table3_published()
    table = evidence.summary(wanted, done, ["Set5"], published).set_index("variant")
    contrasts = evidence.contrasts(done, artefacts.table3_questions(), published.Set5_psnr).set_index("contrast")
    for block in ("RB", "U-HDB"):
        for attention in ("none", "IKM"):
            label = f"{block} {attention}"
            means = by_hand(done[label]).mean(1)
            assert table.Set5_psnr_ours[label] == pytest.approx(means.mean())
            assert table.Set5_psnr_sd[label] == pytest.approx(means.std(ddof=1))
        both = [np.hstack([by_hand(done[f"{block} {a}"], name) for name in ("Set5", "BSD100")])
                for a in ("IKM", "none")]
        assert contrasts.gain_db_ours[f"{block}: IKM − none"] == pytest.approx((both[0] - both[1]).mean())
    assert list(table.index[:2]) == ["RB none", "RB CA"]   # the paper's order
    assert table.Set5_psnr_paper["U-HDB IKM"] == 37.57 and round(table.params_k_ours["RB SA"], 1) == 371.7
    assert contrasts.gain_db_paper["DB: IKM − none"] == pytest.approx(0.08)
    assert contrasts.images["DB: IKM − none"] == 10 and contrasts.seeds["DB: IKM − none"] == 3


def test_a_seed_counts_when_every_variant_has_it(results):
    wanted = experiments.table5(CPU)
    done = fake(wanted, seeds=(0, 1))
    assert set(evidence.summary(wanted, done, ["Set5"]).seeds) == {2}
    done["neither"] = done["neither"][:1]
    assert set(evidence.summary(wanted, done, ["Set5"]).seeds) == {1}


def test_sets_that_no_run_scored_are_empty_and_others_are_shown(results):
    wanted = experiments.table1(CPU)
    done = fake(wanted, sets=("embedded-test",))
    ours = evidence.summary(wanted, done, ["Set5", "Urban100"], artefacts.table1_published())
    assert ours.Set5_psnr_ours.isna().all() and ours["embedded-test_psnr_ours"].notna().all()
    states = artefacts.set_states(CPU, done, ["Set5", "Urban100"])
    rows = artefacts.by_set(ours, states)
    assert set(rows[rows["set"] == "embedded-test"].state) == {"scored"}
    assert set(rows[rows["set"] == "Set5"].state) <= {"not installed", "installed, but not scored by these runs"}
    assert rows[(rows["set"] == "Set5") & (rows.variant == "x2")].psnr_paper.item() == 38.06


@pytest.mark.parametrize(("bonus", "verdict"), [(0.1, "supported"), (-0.1, "not supported")])
def test_verdicts_follow_the_scores(results, bonus, verdict):
    done = fake(experiments.table3(CPU), bonus={f"{b} IKM": bonus for b in ("RB", "DB", "RDB", "U-HDB")})
    found = artefacts.table3_verdicts(evidence.contrasts(done, artefacts.table3_questions()), CPU)
    assert found["C1"]["verdict"] == found["C2"]["verdict"] == verdict
    done = fake(experiments.table5(CPU), bonus={
        "U-style": bonus, "hourglass": bonus, "U-style + hourglass": 2 * bonus})
    found = artefacts.table5_verdicts(evidence.contrasts(done, artefacts.TABLE5_QUESTIONS), CPU)
    assert found["C6"]["verdict"] == verdict
    done = fake(experiments.fig11(CPU), bonus={"U-HDN": 2 * bonus, "V2": bonus, "V3": bonus})
    found = artefacts.fig11_verdicts(evidence.contrasts(done, artefacts.FIG11_QUESTIONS), CPU)
    assert found["C7"]["verdict"] == verdict
    done = fake(experiments.fig10(CPU), bonus={
        label: bonus * np.log2(2 * run[0].batch) for label, run in experiments.fig10(CPU).items() if "IsO" in label})
    found = artefacts.fig10_verdicts(evidence.contrasts(done, artefacts.fig10_questions()), CPU)
    assert found["C5"]["verdict"] == verdict


def test_slope_of_the_gain_is_least_squares(results):
    fields = experiments.TABLE4_FIELDS
    done = fake(experiments.table4(CPU), sets=("BSD100",),
                bonus={f"k={k} D={d} IKM": 0.05 * field for (k, d), field in fields.items()})
    table = evidence.contrasts(done, artefacts.table4_questions(), artefacts.table4_published().BSD100_psnr)
    rows = table.set_index("contrast")
    gains = [rows.gain_db_ours[f"R={field} (k={k}, D={d})"] for (k, d), field in fields.items()]
    slope = np.polyfit(list(fields.values()), gains, 1)[0]
    assert rows.gain_db_ours[artefacts.TABLE4_SLOPE] == pytest.approx(slope) == pytest.approx(0.05, abs=0.01)
    theirs = [rows.gain_db_paper[f"R={field} (k={k}, D={d})"] for (k, d), field in fields.items()]
    assert rows.gain_db_paper[artefacts.TABLE4_SLOPE] == pytest.approx(np.polyfit(list(fields.values()), theirs, 1)[0])
    assert artefacts.table4_verdicts(table, CPU)["C3"]["verdict"] == "supported"
    artefacts.figure_table4(table)


def test_growth_that_slows_down_is_saturation(results):
    sizes = {label: artefacts._params(label) for sweep in experiments.FIG8_SIZES.values() for label in sweep}
    for power, verdict in ((-1.0, "supported"), (0.9, "mixed")):   # concave or convex in log2 of the size
        bonus = {label: np.sign(power) * (params / 1e6) ** power for label, params in sizes.items()}
        done = fake(experiments.fig8(CPU), bonus=bonus)
        found = artefacts.fig8_verdicts(evidence.contrasts(done, artefacts.fig8_questions()), CPU)
        assert found["C8"]["verdict"] == verdict
        artefacts.figure_fig8(done)


def test_the_zero_threshold_may_be_equal_and_the_median_must_be_better(results):
    done = fake(experiments.fig9(CPU), bonus={"tau = 0.0": 0.1, "tau = median": 0.3})
    cost = artefacts.threshold_cost(repeats=1)
    assert list(cost.threshold) == ["tau = 0.0", "tau = mean", "tau = median"] and (cost.milliseconds > 0).all()
    found = artefacts.fig9_verdicts(evidence.contrasts(done, artefacts.fig9_questions()), cost, CPU)
    assert found["C4, zero"]["verdict"] == found["C4, median"]["verdict"] == "supported"
    assert "times as long" in found["C4, median"]["ours"]


def test_our_rows_stand_among_the_methods(results):
    wanted = experiments.table1(CPU)
    done = fake(wanted)
    ours = evidence.summary(wanted, done, ["Set5"], artefacts.table1_published())
    labels = {f"x{scale}": (scale, "U-HDN+IKM, this study") for scale in (2, 3, 4)}
    table = artefacts.among_methods(artefacts.paper("table1"), ours, labels)
    assert len(table) == len(artefacts.paper("table1")) + 3
    row = table[(table.scale == 3) & (table.method == "U-HDN+IKM, this study")]
    assert row.Set5_psnr.item() == pytest.approx(by_hand(done["x3"]).mean()) and round(row.params_k.item()) == 1402
    for profile, verdicts in ((CPU, {"not tested at this budget"}), (PROFILES["paper"], {"not supported", "mixed"})):
        assert artefacts.c9(table, "U-HDN+IKM", profile)["verdict"] in verdicts
    best = table.assign(Set5_psnr=table.Set5_psnr.where(table.method != "U-HDN+IKM, this study", 40.0))
    assert artefacts.c9(best, "U-HDN+IKM", PROFILES["paper"])["verdict"] == "supported"


def test_rounding_is_measured_on_our_own_scores(results):
    table = artefacts.y_rounding(fake(experiments.table2(CPU))).set_index("set")
    assert list(table.index) == ["Set5", "BSD100"] and (table.measured_db.between(0.05, 0.15)).all()


QUESTIONS = {"table3": artefacts.table3_questions(), "fig10": artefacts.fig10_questions(),
             "table5": artefacts.TABLE5_QUESTIONS, "table4": artefacts.table4_questions(),
             "fig9": artefacts.fig9_questions(), "fig11": artefacts.FIG11_QUESTIONS,
             "fig8": artefacts.fig8_questions()}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_are_about_variants_that_are_trained(name):
    labels = {label for weights in QUESTIONS[name].values() for label in weights}
    assert labels <= set(getattr(experiments, name)(CPU))
    for weights in QUESTIONS[name].values():
        assert sum(weights.values()) == pytest.approx(0)


@pytest.mark.parametrize("name", QUESTIONS)
def test_nothing_trained_is_not_tested_and_draws(results, name):
    wanted = getattr(experiments, name)(CPU)
    nothing = {label: [] for label in wanted}
    table = evidence.contrasts(nothing, QUESTIONS[name])
    assert table.gain_db_ours.isna().all()
    assert evidence.summary(wanted, nothing, ["Set5"]).Set5_psnr_ours.isna().all()
    extra = (artefacts.threshold_cost(1),) if name == "fig9" else ()
    found = getattr(artefacts, f"{name}_verdicts")(table, *extra, CPU)
    assert {v["verdict"] for v in found.values()} == {"not tested at this budget"}
    evidence.figure_contrasts(table)
    evidence.figure_curves({"": nothing})
    evidence.figure_gains({"": nothing}, "none")
    {"table4": lambda: artefacts.figure_table4(table), "fig8": lambda: artefacts.figure_fig8(nothing),
     "fig10": lambda: artefacts.figure_fig10(nothing, table)}.get(name, lambda: None)()
    plt.close("all")


def test_paper_numbers_are_the_ones_of_the_text():
    table = artefacts.paper("table3")
    assert len(table) == 16 and set(table.attention) == {"none", "CA", "SA", "IKM"}
    assert (config.PAPER / "table1.csv").exists() and json.dumps(sorted(artefacts.table1_published().index)) == (
        '["x2", "x3", "x4"]')


def test_rows_of_different_numbers_of_seeds_say_so(results):
    done = fake(experiments.table5(CPU))
    assert evidence.with_seeds(evidence.contrasts(done, artefacts.TABLE5_QUESTIONS)) == list(artefacts.TABLE5_QUESTIONS)
    done["U-style"] = done["U-style"][:1]
    names = evidence.with_seeds(evidence.contrasts(done, artefacts.TABLE5_QUESTIONS))
    assert names[0] == "U-style, at equal depths (1 seed)" and names[1] == "U-style, with the hourglass (3 seeds)"


def test_gain_read_off_in_five_ways(results):
    done = fake(experiments.table3(CPU), seeds=(1, 3), bonus={"DB IKM": 0.1})
    again = done["DB IKM"][0]
    first = pd.read_csv(again.folder / "scores.csv", dtype={"image": str}).assign(psnr_y=lambda t: t.psnr_y - 0.4)
    write_csv(results / "cpu" / "repeats" / again.id / "scores.csv", first)
    for run in done["DB IKM"]:   # better along the way, no better at the end
        write_csv(run.folder / "curve.csv", pd.DataFrame(
            {"update": [1, 8, 10], "loss": 1.0, "psnr_y": [20.0, 30.2, 30.0], "seconds": 1.0}))
    for run in done["DB none"]:
        write_csv(run.folder / "curve.csv", pd.DataFrame(
            {"update": [1, 8, 10], "loss": 1.0, "psnr_y": [19.0, 30.0, 30.0], "seconds": 1.0}))
    row = artefacts.table3_sensitivity(done, CPU).set_index("architecture").loc["DB"]
    gain = np.mean([by_hand([a]).mean() - by_hand([b]).mean() + by_hand([a], "BSD100").mean()
                    - by_hand([b], "BSD100").mean() for a, b in zip(done["DB IKM"], done["DB none"], strict=True)]) / 2
    assert row.seeds == 2 and row.test_db == pytest.approx(gain) and row.first_records_db == pytest.approx(gain - 0.2)
    of_seed_1 = [pd.read_csv(done[name][0].folder / "scores.csv").psnr_y.mean() for name in ("DB IKM", "DB none")]
    assert row.first_three_db == pytest.approx(of_seed_1[0] - of_seed_1[1])
    assert row.validation_end_db == 0 and row.validation_late_db == pytest.approx(0.1)
    figure = evidence.figure_gains({"DB": {"none": done["DB none"], "IKM": done["DB IKM"]}}, "none")
    assert len(figure.axes[0].lines) == 2 + 1 + 1   # two seeds, their mean, zero
