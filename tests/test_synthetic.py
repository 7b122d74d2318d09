"""Notebook 01's own functions: signals, exact fits and bounds, against answers known beforehand."""
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import code, definitions
from scipy.optimize import lsq_linear

from ikmlib import config
from ikmlib.study import notebook

demo = definitions("01")
KINDS, Moments, Signals = demo.KINDS, demo.Moments, demo.Signals
SMALL = demo.Setup(kernel=5, length=120, per_kind=6)


def fresh(seed=0):
    return demo.sample(SMALL, np.random.default_rng(seed))


def test_each_kind_is_what_its_name_says_at_mean_0_and_deviation_1():
    made = {kind: demo.signals(kind, 20, 360, np.random.default_rng(0)) for kind in KINDS}
    for x in made.values():
        np.testing.assert_allclose(x.mean(1), 0, atol=1e-12)
        np.testing.assert_allclose(x.std(1), 1)
    jumps = (np.diff(made["piecewise-constant"], append=made["piecewise-constant"][:, :1]) != 0).sum(1)
    assert jumps.min() >= 4 and jumps.max() <= 12
    sine, texture = (np.abs(np.fft.rfft(made[kind])) ** 2 for kind in ("oscillating", "textured"))
    np.testing.assert_allclose(sine.max(1), sine.sum(1))      # one frequency holds all the power
    assert (texture.max(1) < 0.2 * texture.sum(1)).all()      # spread over many
    ends = made["chirp"][:, :90], made["chirp"][:, -90:]
    crossings = np.stack([(np.diff(np.sign(part), axis=1) != 0).sum(1) for part in ends])
    assert (crossings.max(0) > 2 * crossings.min(0)).all() and len(set(crossings.argmax(0))) == 2


def test_degradation_keeps_a_constant_and_removes_what_lies_above_the_new_sampling_rate():
    rng, t = np.random.default_rng(0), np.arange(120)
    flat, slow, fast = np.full((1, 120), 0.7), np.sin(2 * np.pi * t / 120)[None], np.cos(np.pi * t)[None]
    np.testing.assert_allclose(demo.degrade(flat, 1, 0, rng), flat)
    np.testing.assert_allclose(demo.degrade(slow, 1, 0, rng), slow, atol=2e-3)
    assert np.abs(demo.degrade(fast, 1, 0, rng)).max() < 0.01
    assert demo.degrade(np.zeros((50, 120)), 1, 0.1, rng)[:, ::2].std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("skip", [True, False])
def test_moments_give_the_mean_squared_error_of_the_restored_signal(skip):
    data, kernels = fresh(), np.random.default_rng(0).normal(size=(24, 5))
    padded = np.pad(data.degraded, ((0, 0), (2, 2)), mode="wrap")
    restored = skip * data.degraded + [np.correlate(x, w) for x, w in zip(padded, kernels, strict=True)]
    moments = Moments.of(data, demo.replace(SMALL, skip=skip))
    np.testing.assert_allclose(moments.errors(kernels), ((restored - data.clean) ** 2).mean(1))


def test_where_modulated_kernels_made_the_signals_ikm_finds_them_and_a_shared_kernel_does_not():
    """The positive control: the page would show IKM's advantage if there were one."""
    truth, x = np.array([0.1, -0.4, 1.0, 0.3, 0.2]), fresh().degraded
    clean = np.einsum("blk,bk->bl", demo.windows(x, 5), demo.attention(x, 5) * truth)
    data = Signals(np.repeat(range(4), 6), clean, x)
    moments, known = Moments.of(data, demo.replace(SMALL, skip=False)), demo.designs(data, 5, np.random.default_rng(0))
    np.testing.assert_allclose(moments.fit(known["ikm"]), truth, atol=1e-8)
    assert moments.errors(known["ikm"] @ truth).max() < 1e-10
    assert moments.errors(known["shared"] @ moments.fit(known["shared"])).mean() > 1e-4


def test_the_ideal_attention_is_the_bounded_optimum():
    data, w = fresh(1), np.array([0.2, -0.3, 0.5, -0.2, 0.1])
    moments, X = Moments.of(data, SMALL), demo.windows(data.degraded, 5)
    found = moments.errors(demo.ideal_attention(moments, w, sweeps=2000) * w)
    for b in (0, 7, 13, 20):
        missing, bounds = data.clean[b] - data.degraded[b], demo.attention_range(5)
        best = lsq_linear(X[b] * w, missing, bounds=bounds, method="bvls").x
        assert found[b] == pytest.approx(((X[b] @ (best * w) - missing) ** 2).mean(), rel=1e-6)


def test_a_draw_repeats_with_its_seed_and_its_methods_lie_between_their_bounds():
    draw, again = demo.run_draw(SMALL, 3, 0), demo.run_draw(SMALL, 3, 0)
    errors = draw.errors
    assert errors.equals(again.errors) and (errors.min(axis=1) >= errors["oracle"] - 1e-12).all()
    assert (errors["ideal attention"] <= errors["shared"] + 1e-12).all()
    np.testing.assert_allclose(errors["degraded"], ((draw.test.degraded - draw.test.clean) ** 2).mean(1))
    assert np.ptp(draw.kernels["ikm gain"].sum(1)) < 1e-12 and np.ptp(draw.kernels["ikm"].sum(1)) > 1e-3
    mean, closed = errors.mean(), demo.gap_closed(errors).loc[0]
    assert closed["ikm"] == pytest.approx((mean["shared"] - mean["ikm"]) / (mean["shared"] - mean["oracle"]))


def test_moving_or_negating_a_signal_keeps_its_ideal_kernel_but_not_its_attention():
    why = demo.reasons(SMALL, 0)
    assert (why["ideal kernel"][:2] < 1e-6).all() and (why["attention"][:2] > 0.3).all()


def test_one_draw_gives_no_interval_and_is_refused(monkeypatch):
    path, = (config.ROOT / "notebooks").glob("01_*.ipynb")
    parameters, opening, *_ = code(path)
    monkeypatch.setattr(notebook, "open_page", lambda *words, **options: SimpleNamespace(given={"draws": 1}))
    with pytest.raises(ValueError, match="draws = 1: an interval over draws needs at least 2"):
        exec(f"{parameters}\n{opening}", {})
