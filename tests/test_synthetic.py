"""Fig. 1's demo: signals, exact fits and bounds, against answers known beforehand."""
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import lsq_linear

from ikmlib.layers import attention_range
from ikmlib.study import synthetic
from ikmlib.study.synthetic import KINDS, Moments, Setup, Signals

SMALL = Setup(kernel=5, length=120, per_kind=6)


@pytest.fixture(scope="module")
def demo():
    return synthetic.run_demo(SMALL, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_standardised_and_follow_their_seed(kind):
    one, again, other = (synthetic.signals(kind, 5, 360, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.shape == (5, 360)
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    np.testing.assert_allclose(one.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(one.std(1), 1)


def test_each_kind_is_what_its_name_says():
    made = {kind: synthetic.signals(kind, 20, 360, np.random.default_rng(0)) for kind in KINDS}
    jumps = (np.diff(made["piecewise-constant"], append=made["piecewise-constant"][:, :1]) != 0).sum(1)
    assert jumps.min() >= 4 and jumps.max() <= 12
    power = np.abs(np.fft.rfft(made["oscillating"])) ** 2
    np.testing.assert_allclose(power.max(1), power.sum(1))    # one frequency holds all the power
    chirp = made["chirp"]
    crossings = np.stack([(np.diff(np.sign(part), axis=1) != 0).sum(1) for part in (chirp[:, :90], chirp[:, -90:])])
    assert (crossings.max(0) > 2 * crossings.min(0)).all() and len(set(crossings.argmax(0))) == 2
    power = np.abs(np.fft.rfft(made["textured"])) ** 2
    assert (power.max(1) < 0.2 * power.sum(1)).all()          # spread over many


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'square'.*piecewise-constant"):
        synthetic.signals("square", 1, 60, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"kernel": 1}, {"length": 361}, {"length": 30}, {"per_kind": 1}])
def test_impossible_setups_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Setup(**wrong)


def test_degradation_keeps_a_constant_and_removes_what_lies_above_the_new_sampling_rate():
    rng, t = np.random.default_rng(0), np.arange(120)
    flat, slow, fast = np.full((1, 120), 0.7), np.sin(2 * np.pi * t / 120)[None], np.cos(np.pi * t + 0.0)[None]
    np.testing.assert_allclose(synthetic.degrade(flat, 1, 0, rng), flat)
    np.testing.assert_allclose(synthetic.degrade(slow, 1, 0, rng), slow, atol=2e-3)
    assert np.abs(synthetic.degrade(fast, 1, 0, rng)).max() < 0.01
    noisy = synthetic.degrade(np.zeros((50, 120)), 1, 0.1, rng)
    assert noisy[:, ::2].std() == pytest.approx(0.1, rel=0.05)


def test_windows_are_the_neighbours_left_to_right():
    x = np.array([[10.0, 20, 30, 40]])
    np.testing.assert_array_equal(synthetic.windows(x, 3)[0], [[40, 10, 20], [10, 20, 30], [20, 30, 40], [30, 40, 10]])


@pytest.mark.parametrize("skip", [True, False])
def test_moments_give_the_mean_squared_error_of_the_restored_signal(skip):
    setup, rng = Setup(kernel=5, length=120, per_kind=6, skip=skip), np.random.default_rng(0)
    data = synthetic.sample(setup, rng)
    kernels = rng.normal(size=(24, 5))
    restored = skip * data.degraded + np.einsum("blk,bk->bl", synthetic.windows(data.degraded, 5), kernels)
    expected = ((restored - data.clean) ** 2).mean(1)
    np.testing.assert_allclose(Moments.of(data, setup).errors(kernels), expected)


def test_where_modulated_kernels_made_the_signals_ikm_finds_them_and_a_shared_kernel_does_not():
    """The positive control: the demo would show IKM's advantage if there were one."""
    setup, rng = Setup(kernel=5, length=120, per_kind=6, skip=False), np.random.default_rng(0)
    truth = np.array([0.1, -0.4, 1.0, 0.3, 0.2])
    x = synthetic.sample(setup, rng).degraded
    kernels = synthetic.attention(x, 5) * truth
    data = Signals(np.repeat(range(4), 6), np.einsum("blk,bk->bl", synthetic.windows(x, 5), kernels), x)
    moments, known = Moments.of(data, setup), synthetic.designs(data, 5, rng)
    np.testing.assert_allclose(synthetic.fit(moments, known["ikm"]), truth, atol=1e-8)
    assert moments.errors(known["ikm"] @ synthetic.fit(moments, known["ikm"])).max() < 1e-10
    assert moments.errors(known["shared"] @ synthetic.fit(moments, known["shared"])).mean() > 1e-4


def test_a_constant_attention_changes_nothing():
    """The fit absorbs a common factor, so that no method gains or loses by the 1.5 of the released attention."""
    setup = SMALL
    moments = Moments.of(synthetic.sample(setup, np.random.default_rng(0)), setup)
    plain = np.broadcast_to(np.eye(5), (24, 5, 5))
    np.testing.assert_allclose(1.5 * synthetic.fit(moments, 1.5 * plain), synthetic.fit(moments, plain))


def test_the_range_of_the_attention_is_that_of_the_papers_nine_cells_and_is_kept(demo):
    assert attention_range(9) == pytest.approx((1.35335, 1.78288), abs=1e-5)
    low, high = attention_range(5)
    assert demo.attention.shape == (24, 5) and low <= demo.attention.min() < demo.attention.max() <= high


def test_the_ideal_attention_is_the_bounded_optimum():
    setup, rng = SMALL, np.random.default_rng(1)
    data, w = synthetic.sample(setup, rng), np.array([0.2, -0.3, 0.5, -0.2, 0.1])
    moments = Moments.of(data, setup)
    kernels = synthetic.ideal_attention(moments, w, sweeps=2000) * w
    X = synthetic.windows(data.degraded, 5)
    for b in (0, 7, 13, 20):
        missing, bounds = data.clean[b] - data.degraded[b], attention_range(5)
        best = lsq_linear(X[b] * w, missing, bounds=bounds, method="bvls").x
        assert moments.errors(kernels)[b] == pytest.approx(moments.errors(np.tile(best * w, (24, 1)))[b], rel=1e-6)


def test_no_kernel_restores_a_signal_better_than_its_oracle_and_ideal_attention_never_hurts(demo):
    errors = demo.errors.pivot(index="signal", columns="method", values="mse")
    assert (errors.drop(columns="oracle").to_numpy() >= errors[["oracle"]].to_numpy() - 1e-12).all()
    assert (errors["ideal attention"] <= errors["shared"] + 1e-12).all()
    np.testing.assert_allclose(errors["degraded"], ((demo.test.degraded - demo.test.clean) ** 2).mean(1))


def test_with_the_gain_kept_all_kernels_have_the_same_sum(demo):
    assert np.ptp(demo.kernels["ikm gain"].sum(1)) < 1e-12
    assert np.ptp(demo.kernels["ikm"].sum(1)) > 1e-3


def test_draws_repeat_with_their_seed_and_the_gap_runs_from_shared_to_oracle():
    errors = synthetic.run_draws(SMALL, 2, seed=5)
    pd.testing.assert_frame_equal(errors, synthetic.run_draws(SMALL, 2, seed=5))
    closed = synthetic.gap_closed(errors)
    assert closed.shape == (2, len(synthetic.METHODS)) and closed["shared"].eq(0).all() and closed["oracle"].eq(1).all()
    row = errors[(errors["draw"] == 0)].groupby("method")["mse"].mean()
    expected = (row["shared"] - row["ikm"]) / (row["shared"] - row["oracle"])
    assert closed.loc[0, "ikm"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="draws.*1"):
        synthetic.run_draws(SMALL, 1)


def test_moving_or_negating_a_signal_keeps_its_ideal_kernel_but_not_its_attention():
    why = synthetic.reasons(SMALL)
    assert (why["ideal kernel"][:2] < 1e-6).all() and (why["attention"][:2] > 0.3).all()
    assert why["ideal kernel"][2] > why["attention"][2]


@pytest.mark.parametrize("transform", ["sigmoid", "softmax", "residual"])
def test_over_all_positions_of_a_signal_modulation_is_no_better_than_its_mean(transform):
    """The notebook's argument: moving by a cell turns the attention, keeps the error; the error is convex (Jensen)."""
    rng = np.random.default_rng(0)
    data, cell = synthetic.sample(SMALL, rng), SMALL.length // SMALL.kernel
    first = synthetic.attention(data.degraded, SMALL.kernel, transform)
    for w in rng.normal(size=(5, SMALL.kernel)):
        errors = []
        for turn in range(SMALL.kernel):
            moved = Signals(data.kind, *(np.roll(x, turn * cell, axis=1) for x in data[1:]))
            a = synthetic.attention(moved.degraded, SMALL.kernel, transform)
            np.testing.assert_allclose(a, np.roll(first, turn, axis=1))
            errors.append(Moments.of(moved, SMALL).errors(a * w))
        mean = first.mean(1, keepdims=True)
        assert (np.mean(errors, axis=0) >= Moments.of(data, SMALL).errors(mean * w) - 1e-12).all()
        assert mean.std() < 0.01 * mean.mean() and (transform == "sigmoid" or np.allclose(mean, 1))


@pytest.mark.parametrize("ikm, shuffled, verdict", [
    (0.2, 0.1, "supported"), (0.2, 0.2, "mixed"), (-0.1, -0.2, "not supported"), (0.0, -0.2, "not supported")])
def test_the_verdict_follows_the_stated_rule(ikm, shuffled, verdict):
    closed = {**dict.fromkeys(synthetic.METHODS, 0.3), "shared": 0, "oracle": 1, "ikm": ikm, "ikm shuffled": shuffled}
    errors = pd.DataFrame([{"draw": draw, "method": method, "mse": 2 - value + 0.001 * draw}
                           for draw in range(5) for method, value in closed.items()])
    assert synthetic.judge(errors, synthetic.reasons(SMALL))["verdict"] == verdict


def test_figures_and_tables_cover_all_methods_and_kinds(demo):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    errors = synthetic.run_draws(SMALL, 2)
    table = synthetic.summary(errors)
    assert list(table["method"]) == list(synthetic.METHODS.values()) and set(KINDS) <= set(table.columns)
    drawn, compared = synthetic.figure_signals(demo, SMALL), synthetic.figure_errors(errors)
    assert [axis.get_ylabel().split("\n")[0] for axis in drawn.axes[::4]] == list(KINDS)
    assert [label.get_text() for label in compared.axes[0].get_yticklabels()] == list(table["method"])
    plt.close("all")
