"""Statistics against plain formulas and by simulation; the rule for outcomes and verdicts."""
import numpy as np
import pandas as pd
import pytest

from ikmlib.study import stats
from ikmlib.study.stats import Difference, holm, judge, outcomes, paired, residual_deviation

random = np.random.default_rng(0)


def test_seeds_and_images_are_two_students_intervals():
    d = random.normal(0.1, 1, (3, 20)) + np.array([[0.0], [0.5], [1.0]])
    seeds, images = d.mean(1).std(ddof=1) / 3 ** 0.5, d.mean(0).std(ddof=1) / 20 ** 0.5
    half = np.hypot(4.30265 * seeds, 2.09302 * images)
    assert paired(d).interval == pytest.approx((d.mean(), d.mean() - half, d.mean() + half), abs=1e-5)


def test_one_seed_is_students_interval_over_images():
    d = random.normal(0.1, 1, 40)
    half = 2.02269 * d.std(ddof=1) / 40 ** 0.5
    assert paired(d).interval == pytest.approx((d.mean(), d.mean() - half, d.mean() + half), abs=1e-5)


def test_one_value_alone_decides_nothing():
    alone = paired(np.array([0.7]))
    assert alone.known and alone.mean == 0.7 and np.isnan(alone.interval[1:]).all() and np.isnan(alone.detectable)
    assert alone.p() == 1 and outcomes([alone]) == outcomes([alone], margin=0.02) == ["undecided"]


def test_identical_samples_are_no_evidence_of_a_difference():
    same = paired(np.zeros((3, 20)))
    assert same.p(0) == 1 and same.p(0.02) == 0 and outcomes([same]) == ["fails"]
    assert outcomes([same], margin=0.02) == ["holds"]


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_interval_refuses(bad):
    with pytest.raises(ValueError, match="finite and not empty"):
        paired(np.array(bad))


# --- pooled deviations ----------------------------------------------------------------------------------------------


def test_two_networks_pooled_are_the_paired_t_interval():
    x = random.normal(30, 1, (2, 4, 9))   # networks, seeds, images
    deviation, freedom = residual_deviation(pd.DataFrame(x.mean(2)))
    own, pooled = paired(x[0] - x[1]), paired(x[0] - x[1], (deviation * (2 / 4) ** 0.5, freedom))
    assert pooled.interval == pytest.approx(own.interval) and freedom == own.errors[1][1] == 3
    wide = paired(x[0] - x[1], (9.0, 30))
    assert (wide.own_low, wide.own_high) == own.interval[1:] and wide.high - wide.low > 30


def test_residuals_of_a_balanced_table_are_those_of_two_way_analysis_of_variance():
    x = random.normal(0, 1, (5, 3))
    residuals = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    deviation, freedom = residual_deviation(pd.DataFrame(x))
    assert freedom == 8 and deviation == pytest.approx(np.sqrt((residuals ** 2).sum() / 8))
    x[3:, 2] = np.nan   # two networks have two seeds only
    assert residual_deviation(pd.DataFrame(x))[1] == 6
    assert residual_deviation(pd.DataFrame(x[:1])) is None


def simulated(draw, seeds, deviations, images=60):
    """PSNR by network, seed and image: images and seeds in common, each training of its own deviation."""
    networks = len(deviations)
    common = draw.normal(0, 3, images) + draw.normal(0, 1, (seeds, 1))
    own = draw.normal(0, 0.3, (networks, 1, images)) + draw.normal(0, 0.5, (networks, seeds, images))
    return common + own + draw.normal(0, 1, (networks, seeds, 1)) * np.asarray(deviations)[:, None, None]


def coverage(seeds, deviations, repetitions=400):
    """How often the pooled interval of the first network minus the last holds the truth, 0.3."""
    draw, hits = np.random.default_rng(seeds), 0
    for _ in range(repetitions):
        x = simulated(draw, seeds, deviations)
        x[0] += 0.3
        deviation, freedom = residual_deviation(pd.DataFrame(x.mean(2)))
        d = paired(x[0] - x[-1], (deviation * (2 / seeds) ** 0.5, freedom))
        hits += d.low <= 0.3 <= d.high
    return hits / repetitions


@pytest.mark.parametrize(("seeds", "networks"), [(3, 2), (3, 4), (5, 4), (3, 10)])
def test_pooled_intervals_cover_the_truth(seeds, networks):
    assert 0.92 <= coverage(seeds, [1.0] * networks) <= 0.995


def test_a_network_that_scatters_twice_as_much_costs_coverage():
    """The price of pooling where it is not fair: in the noisy network's comparisons the interval covers less."""
    assert 0.80 <= coverage(3, [2.0, 1.0, 1.0, 1.0]) <= 0.94


def test_pooling_lets_a_true_null_fail():
    """With a deviation of their own, three seeds' intervals are too wide to exclude a difference worth a claim."""
    draw, widths = np.random.default_rng(1), []
    for _ in range(200):
        x = simulated(draw, 3, [1.0] * 6)
        deviation, freedom = residual_deviation(pd.DataFrame(x.mean(2)))
        own, pooled = paired(x[0] - x[1]), paired(x[0] - x[1], (deviation * (2 / 3) ** 0.5, freedom))
        widths.append((own.high - own.low, pooled.high - pooled.low))
    own, pooled = np.median(widths, axis=0)
    assert pooled < 0.65 * own


def test_p_is_the_level_at_which_the_interval_ends_there():
    d = paired(random.normal(0.2, 1, (4, 30)))
    half = stats.half_width(d.errors, d.p(0.05))
    assert abs(d.mean - 0.05) == pytest.approx(half)
    assert d.p(d.low) == pytest.approx(0.05) == d.p(d.high) and d.p(d.mean) == pytest.approx(1)


def test_an_interval_without_ends_says_nothing():
    unknown = Difference(0.1, float("nan"), float("nan"), 1, 2, errors=((float("nan"), 1),))
    assert unknown.p() == 1 and outcomes([unknown]) == ["undecided"]


def test_a_difference_of_the_detectable_size_holds_in_four_of_five_repetitions():
    draw, errors = np.random.default_rng(2), ((0.01, 200), (0.02, 8))
    size, held = Difference(0, 0, 0, 5, 119, errors=errors).detectable, 0
    for _ in range(2000):
        seeds = draw.normal(0, 0.02, 9)   # nine trainings give the error of a mean and its eight degrees of freedom
        estimate = size + draw.normal(0, 0.01) + draw.normal(0, 0.02)
        held += estimate - stats.half_width(((0.01, 200), (float(seeds.std(ddof=1)), 8))) > 0
    assert 0.74 <= held / 2000 <= 0.86


# --- the rule -------------------------------------------------------------------------------------------------------


def d(low, high, seeds=3):
    error = (high - low) / 2 / stats.student.isf(0.025, 1000)
    return Difference((low + high) / 2, low, high, seeds, 100, errors=((error, 1000),))


@pytest.mark.parametrize(("low", "high", "better", "as_good"), [
    (0.01, 0.1, "holds", "holds"), (-0.01, 0.1, "undecided", "holds"), (-0.03, 0.1, "undecided", "undecided"),
    (-0.01, 0.01, "fails", "holds"), (-0.1, 0.019, "fails", "undecided"), (-0.1, -0.03, "fails", "fails")])
def test_outcomes_of_one_difference(low, high, better, as_good):
    assert outcomes([d(low, high)]) == [better] and outcomes([d(low, high)], margin=0.02) == [as_good]


def test_what_is_worth_a_claim_depends_on_the_quantity():
    assert outcomes([d(-0.1, 0.03)], smallest=0.05) == ["fails"] and outcomes([d(-0.1, 0.03)]) == ["undecided"]


@pytest.mark.parametrize(("value", "written"), [
    (0.0149, "+0.015"), (0.01976, "+0.0198"), (-0.0201, "-0.0201"), (-0.00036, "-0.0004"), (0.0, "+0.000"),
    (0.02, "+0.020"), (0.00003, "+0.00003"), (37.57 - 37.55, "+0.020"), (float("nan"), "+nan"), (float("inf"), "+inf")])
def test_a_number_is_written_so_that_it_is_not_taken_for_a_bound(value, written):
    assert stats.signed(value) == written


def test_holm_against_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_holm_asks_more_of_each_of_four():
    once = Difference(0.022, 0.001, 0.043, 5, 119, errors=((0.0105, 118),))
    sure = Difference(0.1, 0.079, 0.121, 5, 119, errors=((0.0105, 118),))
    assert outcomes([once]) == outcomes([sure, once], correct=holm)[1:] == ["holds"]   # the larger p is not multiplied
    assert outcomes([once] * 4, correct=holm) == ["undecided"] * 4
    assert outcomes([sure] * 4, correct=holm) == ["holds"] * 4
    null = Difference(0.0, -0.012, 0.012, 5, 119, errors=((0.006, 118),))
    assert outcomes([null], correct=holm) == ["fails"] and outcomes([null] * 4, correct=holm) == ["fails"] * 4


def test_verdict_rule():
    assert judge(["holds", "holds"]) == "supported" and judge([]) == stats.UNTESTED
    assert judge(["holds", "fails", "undecided"]) == "mixed"
    assert judge(["fails", "undecided"]) == judge(["fails"]) == "not supported"
    assert judge(["holds", "undecided"]) == judge(["undecided"]) == "undecided"
