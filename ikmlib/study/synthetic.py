"""Fig. 1: what a kernel modulated by 1-D contextual attention restores, next to one shared kernel and one each.

Every method that is fitted gives signal b the kernel w_b = D_b v: D_b (k, P) is known from the degraded signal, v (P,)
is shared. D_b = I is one shared kernel, D_b = diag(a_b) is IKM (Eqs. 7-8). The restored signal is linear in v, so v is
fitted exactly, by least squares over the training signals: no training loop, hence no optimiser to blame. The paper's
text gives no detail of its Fig. 1; `Setup` and `signals` state every assumption made instead.

Letters: B signals, L samples in a signal, k taps of a kernel (= cells of the attention), P fitted numbers.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from tqdm import tqdm

from ikmlib import layers
from ikmlib.study.stats import paired

KINDS = ("piecewise-constant", "oscillating", "chirp", "textured")
METHODS = {
    "degraded": "no restoration",
    "shared": "one shared kernel",
    "ikm": "IKM, released attention",
    "ikm shuffled": "IKM, another signal's attention",
    "ikm residual": "IKM, attention 1 + softmax − 1/k",
    "ikm softmax": "IKM, attention k·softmax",
    "ikm gain": "IKM with its overall gain kept *",
    "linear": "kernel linear in the attention *",
    "spread": "kernel linear in the attention's spread *",
    "kind": "one kernel per kind of signal *",
    "ideal attention": "IKM, ideal attention in the released range †",
    "oracle": "one kernel per signal (oracle) †",
}   # * more than the paper proposes   † fitted on the clean test signal itself: a bound, not a method


@dataclass(frozen=True)
class Setup:
    """The assumptions of the demo; all signals are periodic, so there are no borders.

    Raises ValueError for an even kernel, an odd length, or too few signals to shuffle.
    """

    kernel: int = 9         # taps: as many attention cells as the paper's 3 x 3 kernels, hence the same range of values
    length: int = 360       # samples
    per_kind: int = 64      # training signals of each kind, and as many test signals
    blur: float = 1.0       # s.d. of the Gaussian blur before taking every second sample, samples
    noise: float = 0.05     # s.d. of the white noise on those samples; clean signals have s.d. 1
    offset: float = 0.0     # s.d. of a constant added to each clean signal; 0: centred: the mask 1[x >= 0] tells most
    layout: float = 0.0     # height of a slow wave whose phase tells the kind; 0: where the mass lies tells nothing
    skip: bool = True       # the kernel restores what is missing: output = input + convolution, as in the networks

    def __post_init__(self) -> None:
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, not {self.kernel}")
        if self.length % 2 or self.length < 4 * self.kernel:
            raise ValueError(f"length must be even and at least 4 kernels ({4 * self.kernel}), not {self.length}")
        if self.per_kind < 2:
            raise ValueError(f"per_kind must be at least 2, not {self.per_kind}")


class Signals(NamedTuple):
    kind: ndarray        # (B,) index into KINDS
    clean: ndarray       # (B, L)
    degraded: ndarray    # (B, L)


class Demo(NamedTuple):
    errors: pd.DataFrame             # kind, signal, method, mse: mean squared error of each test signal
    kernels: dict[str, ndarray]      # method -> (B, k), as fitted: with a skip, without its identity
    attention: ndarray               # (B, k) of the test signals, released form
    test: Signals


# --- signals and their degradation ----------------------------------------------------------------------------------


def signals(kind: str, count: int, length: int, rng: np.random.Generator) -> ndarray:
    """`count` periodic random signals of one kind -> (count, length), each of mean 0 and s.d. 1.

    Raises ValueError for a kind that is not one of KINDS.
    """
    t = np.arange(length) / length
    phase = rng.random((count, 1))
    if kind == "piecewise-constant":    # 4 to 12 steps between normal levels
        steps = [np.sort(rng.choice(length, rng.integers(4, 13), replace=False)) for _ in range(count)]
        x = np.stack([rng.normal(size=len(s))[np.searchsorted(s, range(length), side="right") - 1] for s in steps])
    elif kind == "oscillating":         # one sine, 1/40 to 1/5 periods per sample
        x = np.sin(2 * np.pi * (np.round(length * rng.uniform(1 / 40, 1 / 5, (count, 1))) * t + phase))
    elif kind == "chirp":               # between 1/120..1/30 and 1/7..1/4 periods per sample, rising or falling
        ends = (rng.uniform(*between, (count, 1)) for between in ((1 / 120, 1 / 30), (1 / 7, 1 / 4)))
        low, high = (2 * np.round(length * end / 2) for end in ends)    # even, so that the phase closes on itself
        x = np.sin(2 * np.pi * (low * t + (high - low) * t * t / 2 + phase))
        x = np.where(rng.random((count, 1)) < 0.5, x, x[:, ::-1])
    elif kind == "textured":            # white noise smoothed with a Gaussian of 0.5 to 1.5 samples
        x = _blur(rng.normal(size=(count, length)), rng.uniform(0.5, 1.5, (count, 1)))
    else:
        raise ValueError(f"unknown kind of signal {kind!r}; allowed: {', '.join(KINDS)}")
    x = x - x.mean(1, keepdims=True)
    return x / x.std(1, keepdims=True)


def _blur(x: ndarray, sigma: float | ndarray) -> ndarray:
    """Periodic Gaussian blur of s.d. `sigma` samples, along the last axis."""
    gain = np.exp(-2 * (np.pi * np.fft.rfftfreq(x.shape[-1]) * sigma) ** 2)
    return np.fft.irfft(np.fft.rfft(x) * gain, x.shape[-1])


def degrade(clean: ndarray, blur: float, noise: float, rng: np.random.Generator) -> ndarray:
    """Blur, keep every second sample, add noise, interpolate cubically back to the old length: (B, L) -> (B, L)."""
    low = _blur(clean, blur)[:, ::2]
    low = low + noise * rng.normal(size=low.shape)
    before, after, later = (np.roll(low, shift, 1) for shift in (1, -1, -2))
    between = (-before + 9 * low + 9 * after - later) / 16
    return np.stack([low, between], axis=-1).reshape(clean.shape)


def sample(setup: Setup, rng: np.random.Generator) -> Signals:
    """Fresh signals of all kinds, all degraded alike."""
    kind = np.repeat(np.arange(len(KINDS)), setup.per_kind)
    clean = np.concatenate([signals(name, setup.per_kind, setup.length, rng) for name in KINDS])
    wave = np.cos(2 * np.pi * (np.arange(setup.length) / setup.length - 0.5 - kind[:, None] / len(KINDS)))
    clean = clean + setup.layout * wave + setup.offset * rng.normal(size=(len(kind), 1))
    return Signals(kind, clean, degrade(clean, setup.blur, setup.noise, rng))


# --- kernels --------------------------------------------------------------------------------------------------------


def attention(x: ndarray, kernel: int, transform: str = "sigmoid") -> ndarray:
    """Contextual attention of signals (Eqs. 9-11), the networks' own code: (B, L) -> (B, k)."""
    return layers.contextual_attention(torch.from_numpy(x.copy())[:, None], kernel, transform=transform)[:, 0].numpy()


def windows(x: ndarray, kernel: int) -> ndarray:
    """The k samples around each sample: `windows(x, k) @ w` is the periodic convolution. (B, L) -> (B, L, k)."""
    return np.stack([np.roll(x, kernel // 2 - tap, axis=1) for tap in range(kernel)], axis=-1)


class Moments(NamedTuple):
    """Each signal's squared error, as a quadratic form of its kernel: w'Gw - 2r'w + p."""

    G: ndarray           # (B, k, k)
    r: ndarray           # (B, k)
    p: ndarray           # (B,)

    @classmethod
    def of(cls, data: Signals, setup: Setup) -> Moments:
        X, target = windows(data.degraded, setup.kernel), data.clean - setup.skip * data.degraded
        return cls(np.einsum("bli,blj->bij", X, X) / setup.length, np.einsum("bli,bl->bi", X, target) / setup.length,
                   (target**2).mean(1))

    def errors(self, kernels: ndarray) -> ndarray:
        """Mean squared error of each signal restored by its kernel: (B, k) -> (B,)."""
        return np.einsum("bi,bij,bj->b", kernels, self.G, kernels) - 2 * (kernels * self.r).sum(1) + self.p

    def oracle(self) -> ndarray:
        """The kernel of least squared error of each signal -> (B, k)."""
        return np.linalg.solve(self.G, self.r[..., None])[..., 0]


def fit(moments: Moments, designs: ndarray) -> ndarray:
    """The v of least squared error when signal b has the kernel D_b v: designs (B, k, P) -> (P,)."""
    normal = np.einsum("bip,bij,bjq->pq", designs, moments.G, designs, optimize=True)
    return np.linalg.lstsq(normal, np.einsum("bip,bi->p", designs, moments.r), rcond=1e-12)[0]


def designs(data: Signals, kernel: int, rng: np.random.Generator) -> dict[str, ndarray]:
    """D_b of each fitted method, (B, k, P): how it makes signal b's kernel out of numbers shared by all signals."""
    eye, ones = np.eye(kernel), np.ones((len(data.kind), 1))
    a = attention(data.degraded, kernel)

    def mix(features: ndarray) -> ndarray:    # (B, F): w_b is a sum of F shared kernels with the weights features[b]
        return np.einsum("bf,ij->bifj", features, eye).reshape(len(features), kernel, -1)

    def modulate(a: ndarray) -> ndarray:      # w_b = a_b * w
        return a[:, :, None] * eye

    gain_kept = modulate(a)                   # as IKM, but the centre tap makes sum(w_b) the same for all signals
    gain_kept[:, kernel // 2] += a.mean() - a
    return {
        "shared": mix(ones), "ikm": modulate(a), "ikm shuffled": modulate(rng.permutation(a)), "ikm gain": gain_kept,
        **{f"ikm {form}": modulate(attention(data.degraded, kernel, form)) for form in ("residual", "softmax")},
        "linear": mix(np.hstack([ones, a - a.mean(0)])), "spread": mix(np.hstack([ones, a.std(1, keepdims=True)])),
        "kind": mix(np.eye(len(KINDS))[data.kind]),
    }


def ideal_attention(moments: Moments, w: ndarray, sweeps: int = 200) -> ndarray:
    """For each signal the attention within the released range that serves it best, given w (k,) -> (B, k).

    Coordinate descent; the problem is convex, so it ends at the optimum.
    """
    low, high = layers.attention_range(len(w))
    G, r = moments.G * w[:, None] * w, moments.r * w
    a = np.full(r.shape, (low + high) / 2)
    for _ in range(sweeps):
        for tap in range(len(w)):
            slope = r[:, tap] - np.einsum("bj,bj->b", G[:, tap], a)
            a[:, tap] = np.clip(a[:, tap] + slope / G[:, tap, tap], low, high)
    return a


# --- the demo -------------------------------------------------------------------------------------------------------


def run_demo(setup: Setup, seed: int | tuple[int, ...] = 0) -> Demo:
    """One draw of training and test signals: every method fitted on the first, scored on the second."""
    rng = np.random.default_rng(seed)
    train, test = sample(setup, rng), sample(setup, rng)
    fitting, scoring = Moments.of(train, setup), Moments.of(test, setup)
    known, new = designs(train, setup.kernel, rng), designs(test, setup.kernel, rng)
    kernels = {method: new[method] @ fit(fitting, known[method]) for method in known}
    middle = kernels["shared"][0] / np.mean(layers.attention_range(setup.kernel))   # mid-range attention gives "shared"
    kernels["ideal attention"] = ideal_attention(scoring, middle) * middle
    kernels["oracle"] = scoring.oracle()
    kernels["degraded"] = np.eye(setup.kernel)[setup.kernel // 2] * np.full((len(test.kind), 1), 1.0 - setup.skip)
    errors = [pd.DataFrame({"kind": np.array(KINDS)[test.kind], "signal": np.arange(len(test.kind)), "method": method,
                            "mse": scoring.errors(kernels[method])}) for method in METHODS]
    return Demo(pd.concat(errors, ignore_index=True), kernels, attention(test.degraded, setup.kernel), test)


def run_draws(setup: Setup, draws: int, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """The errors of `draws` independent demos, in long form: draw, kind, signal, method, mse.

    Raises ValueError for fewer than 2 draws, which leave no spread to report.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    bar = tqdm(range(draws), desc="draws", mininterval=1, disable=not progress)
    return pd.concat([run_demo(setup, (seed, draw)).errors.assign(draw=draw) for draw in bar], ignore_index=True)


def gap_closed(errors: pd.DataFrame) -> pd.DataFrame:
    """Share of the gap between one shared kernel (0) and an oracle kernel per signal (1) that each method closes.

    -> one row per draw, one column per method. A draw is the unit: signals of one draw share their fitted kernels.
    """
    mean = errors.pivot_table(index="draw", columns="method", values="mse")[list(METHODS)]
    return mean.rsub(mean["shared"], axis=0).div(mean["shared"] - mean["oracle"], axis=0)


def summary(errors: pd.DataFrame) -> pd.DataFrame:
    """One row per method: mean squared error x 1000 per kind and of all, share of the gap closed with its 95 % interval
    over draws, and the share of test signals that it restores better than one shared kernel does."""
    mse = errors.pivot_table(index="method", columns="kind", values="mse").loc[list(METHODS), list(KINDS)] * 1000
    intervals = [paired(column.to_numpy()).interval for _, column in gap_closed(errors).items()]
    closed = pd.DataFrame(intervals, index=METHODS, columns=["gap_closed", "low", "high"])
    wide = errors.pivot(index=["draw", "signal"], columns="method", values="mse")
    better = wide.drop(columns="shared").lt(wide["shared"], axis=0).mean()
    table = mse.assign(all=mse.mean(axis=1)).join(closed).assign(better_than_shared=better)
    return table.rename(index=METHODS).rename_axis("method").reset_index()


def vary(draws: int, seed: int = 0) -> pd.DataFrame:
    """The share of the gap that methods close with each assumption changed in turn; low, high: IKM's 95 % interval."""
    changes = [{}, {"kernel": 3}, {"kernel": 5}, {"kernel": 15}, {"blur": 1.5}, {"noise": 0.02}, {"noise": 0.1},
               {"offset": 0.5}, {"layout": 1.5}, {"skip": False}]
    rows = []
    for change in tqdm(changes, desc="assumptions", mininterval=1):
        name = ", ".join(f"{key} = {value}" for key, value in change.items()) or f"{draws} draws, otherwise as above"
        closed = gap_closed(run_draws(Setup(**change), draws, seed, progress=False))
        mean, low, high = paired(closed["ikm"].to_numpy()).interval
        others = closed[["ikm shuffled", "ikm gain", "linear", "spread", "kind", "ideal attention"]].mean()
        rows.append({"assumption": name, "ikm": mean, "low": low, "high": high, **others})
    return pd.DataFrame(rows)


def reasons(setup: Setup, seed: int = 0) -> pd.DataFrame:
    """Does a signal's attention depend on what its ideal kernel depends on? One row per question, one column for each.

    A periodic signal that is moved or negated keeps its ideal kernel. Changes are mean distances, as shares of the mean
    distance between two different signals; the last row is the share of the variance that lies between the kinds.
    """
    rng = np.random.default_rng((seed, 1))
    kind, clean, degraded = sample(setup, rng)
    other = rng.permutation(len(kind))
    half = setup.length // 4 * 2    # an even step keeps the samples that were kept

    def both(*signals: ndarray) -> tuple[ndarray, ndarray]:
        moments = Moments.of(Signals(kind, *signals), setup)
        return attention(signals[1], setup.kernel), moments.oracle()

    def change(new: ndarray, old: ndarray) -> float:
        return np.linalg.norm(new - old, axis=1).mean() / np.linalg.norm(old[other] - old, axis=1).mean()

    old, moved = both(clean, degraded), both(np.roll(clean, half, 1), np.roll(degraded, half, 1))
    by_kind = [pd.DataFrame(values).groupby(kind).transform("mean") for values in old]
    rows = {
        "change when the signal moves by half its length": map(change, moved, old),
        "change when the signal is negated": map(change, both(-clean, -degraded), old),
        "variance that lies between the kinds": (
            m.var().sum() / v.var(0, ddof=1).sum() for m, v in zip(by_kind, old, strict=True)),
    }
    columns = ["share", "attention", "ideal kernel"]
    return pd.DataFrame([[name, *values] for name, values in rows.items()], columns=columns)


def judge(errors: pd.DataFrame, why: pd.DataFrame) -> dict[str, str]:
    """Verdict on C12, by the rule the notebook states before the result -> verdict, ours, because."""
    closed = gap_closed(errors)
    ikm, own = (paired(d.to_numpy()).interval for d in (closed["ikm"], closed["ikm"] - closed["ikm shuffled"]))
    verdict = "not supported" if ikm[1] <= 0 else "supported" if own[1] > 0 else "mixed"
    mean, moved = closed.mean(), why.iloc[0]
    ours = (f"IKM closes {_interval(ikm)} of the gap from a shared kernel to an oracle kernel per signal; its own "
            f"attention against another's: {_interval(own)}; one kernel per kind closes {mean['kind']:.0%}")
    because = (f"moving a signal by half its length changes its ideal kernel by {moved['ideal kernel']:.0%} and its "
               f"attention by {moved['attention']:.0%} of the distance between two signals; with each kernel's gain "
               f"kept, IKM closes {mean['ikm gain']:.0%}; ideal attention in its range, {mean['ideal attention']:.0%}")
    return {"verdict": verdict, "ours": ours, "because": because}


def _interval(estimate: tuple[float, float, float]) -> str:
    return "{:.1%} [{:.1%}, {:.1%}]".format(*estimate)


# --- figures --------------------------------------------------------------------------------------------------------

LINES = {    # Okabe-Ito colours: safe for colour-blind readers
    "shared": {"color": "#0072B2", "label": "one shared kernel"},
    "ikm": {"color": "#D55E00", "label": "IKM"},
    "oracle": {"color": "#009E73", "label": "oracle kernel"},
}


def figure_signals(demo: Demo, setup: Setup):
    """A typical test signal of each kind (median ratio of IKM's error to the shared kernel's): its attention, the 50
    samples around its worst degraded one, what is wrong with them once restored, and the kernels that restored it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(KINDS), 4, figsize=(13, 10.5), layout="constrained", width_ratios=(1.5, 1, 1, 1))
    mse = demo.errors.pivot(index="signal", columns="method", values="mse")
    ratio = mse["ikm"] / mse["shared"]
    taps = np.arange(setup.kernel) - setup.kernel // 2
    for row, (index, kind) in zip(axes, enumerate(KINDS), strict=True):
        of_kind = ratio[demo.test.kind == index]
        b = (of_kind - of_kind.median()).abs().idxmin()
        clean, degraded = demo.test.clean[b], demo.test.degraded[b]
        _draw_attention(row[0], degraded, demo.attention[b])
        start = int(np.clip(np.abs(clean - degraded).argmax() - 25, 0, len(clean) - 50))
        shown = np.arange(start, start + 50)
        row[0].plot(shown[[0, -1]], [row[0].get_ylim()[0]] * 2, color="k", linewidth=6, solid_capstyle="butt")
        row[1].plot(shown, clean[shown], color="0.75", linewidth=3.5, label="clean")
        row[1].plot(shown, degraded[shown], color="0.25", linestyle=":", label="degraded")
        for method, style in LINES.items():
            kernel = demo.kernels[method][b]
            restored = setup.skip * degraded + windows(degraded[None], setup.kernel)[0] @ kernel
            if method != "oracle":    # the oracle's line would cover the others; its error is beside them
                row[1].plot(shown, restored[shown], linewidth=1.2, **style)
            row[2].plot(shown, (restored - clean)[shown], linewidth=1.2, **style)
            row[3].plot(taps, kernel, marker="o", markersize=3.5, **style)
        row[3].set_xticks(taps[::2])
        row[0].set_ylabel(f"{kind}\namplitude, s.d.")
        scores = " | ".join(f"{1000 * mse.loc[b, method]:.1f}" for method in LINES)
        row[2].set_title(f"MSE ×1000: {scores}", loc="right", fontsize=10)
    heads = ("degraded signal over its attention", "50 samples, restored", "their errors\n", "kernel")
    for top, bottom, head, unit in zip(axes[0], axes[-1], heads, ("position",) * 3 + ("tap",), strict=True):
        top.set_title(head)
        bottom.set_xlabel(f"{unit}, samples")
    handles = {line.get_label(): line for axis in axes[0, 1:3] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _draw_attention(axis, degraded: ndarray, a: ndarray) -> None:
    """A whole signal over its attention: one shade per cell, with the value written in it."""
    edges, top = np.linspace(0, len(degraded), len(a) + 1), 1.35 * np.abs(degraded).max()
    low, high = layers.attention_range(len(a))
    axis.pcolormesh(edges, [-top, top], a[None], cmap="YlOrBr", vmin=low, vmax=high + 0.25, zorder=0)
    for middle, value in zip((edges[1:] + edges[:-1]) / 2, a, strict=True):
        axis.text(middle, 0.96 * top, f"{value:.2f}", ha="center", va="top", fontsize=8)
    axis.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
    axis.plot(degraded, color="0.1", linewidth=0.9)
    axis.set(ylim=(-top, top), xlim=(0, len(degraded)))
    axis.grid(False)


def figure_errors(errors: pd.DataFrame):
    """Left: share of the gap that each method closes, with 95 % interval. Right: gain of each signal of one draw."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    _draw_gap(left, summary(errors))
    draw = errors[errors["draw"] == errors["draw"].min()]
    mse = draw.pivot(index=["kind", "signal"], columns="method", values="mse")
    rng = np.random.default_rng(0)    # spreads the points of a row, so that they can be told apart
    for y, kind in enumerate(KINDS):
        for below, method in ((-0.18, "ikm"), (0.18, "oracle")):
            gain = 10 * np.log10(mse.loc[kind, "shared"] / mse.loc[kind, method])
            right.scatter(gain, y + below + rng.uniform(-0.12, 0.12, len(gain)), s=12, alpha=0.6, linewidths=0,
                          **{**LINES[method], "label": LINES[method]["label"] if y == 0 else None})
    right.axvline(0, color=LINES["shared"]["color"], linewidth=1)
    right.set(yticks=range(len(KINDS)), yticklabels=KINDS, xlabel="gain over one shared kernel, dB")
    right.set_title("each signal of one draw", loc="left")
    right.grid(False, axis="y")
    right.invert_yaxis()
    right.legend(frameon=False, loc="lower right")
    return figure


def _draw_gap(axis, table: pd.DataFrame, left_end: float = -0.45) -> None:
    """A point and its interval per method; where it lies left of `left_end`, its number with an arrow."""
    for y, (name, row) in enumerate(table.set_index("method").iterrows()):
        colour = LINES["oracle" if "†" in name else "ikm" if name.startswith("IKM") else "shared"]["color"]
        if row["gap_closed"] < left_end:
            axis.text(left_end + 0.01, y, f"◂ {row['gap_closed']:.0%}", va="center", color=colour)
        else:
            axis.plot(row[["low", "high"]], [y, y], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axis.plot(row["gap_closed"], y, "o", color=colour, markersize=5)
    axis.axvline(0, **LINES["shared"], linewidth=1)
    axis.set(xlim=(left_end, 1.05), yticks=range(len(table)), yticklabels=table["method"],
             xlabel="gap closed, from a shared kernel to an oracle each")
    axis.set_title("all signals, all draws", loc="left")
    axis.grid(False, axis="y")
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
