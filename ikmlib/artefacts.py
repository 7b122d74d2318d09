"""The paper's artefacts, one by one: its numbers under our labels, the questions asked of them, verdicts, figures."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from . import config, datasets
from .config import PROFILES, Profile
from .evidence import (
    Weights,
    architecture_of,
    claim,
    common_seeds,
    contrasts,
    curves,
    differences,
    runs_in_words,
    scores,
)
from .experiments import (
    FIG9_THRESHOLDS,
    FIG10_BUDGETS,
    FIG10_RULES,
    NAMES,
    RATE_FACTORS,
    TABLE3_ATTENTIONS,
    TABLE3_BLOCKS,
    TABLE4_FIELDS,
    Variants,
    ablated,
    complete,
    fig8_sizes,
    fig10_batches,
    fig10_setting,
    planned,
)
from .layers import pooled_mask
from .models import ARCHITECTURES, Architecture, cost
from .protocol import rounding_cost
from .stats import SMALLEST, holm
from .study import Run


def paper(name: str) -> pd.DataFrame:
    """A table of the paper, such as "table3". `none` and `-` stay text."""
    return pd.read_csv(config.PAPER / f"{name}.csv", keep_default_na=False, na_values=[""])


def answers(profile: Profile, part: str, sets: Sequence[str] = ()) -> pd.DataFrame:
    """`evidence.contrasts` of a part's questions, beside the paper's numbers where it has some. Deviations over seeds
    are pooled within an architecture for Table III, over all networks of the part elsewhere."""
    questions = {"table3": table3_questions, "table4": table4_questions, "table5": lambda: TABLE5_QUESTIONS,
                 "fig8": partial(fig8_questions, profile), "fig9": fig9_questions,
                 "fig10": partial(fig10_questions, profile), "fig11": lambda: FIG11_QUESTIONS}[part]()
    published = {"table3": lambda: table3_published().Set5_psnr, "table4": lambda: table4_published().BSD100_psnr,
                 "table5": lambda: table5_published().Set5_psnr}.get(part, lambda: None)()
    pooling = {"family": architecture_of} if part == "table3" else {}
    return contrasts(planned(profile, part), questions, published,
                     sets=sets or (["BSD100"] if part == "table4" else []), **pooling)


# --- Table III ------------------------------------------------------------------------------------------------------


def table3_published() -> pd.DataFrame:
    """Table III by our labels; the attention's own #Params and #FLOPs added to the network's."""
    table = paper("table3")
    table["params_k"] += table.extra_params_k
    table["flops_g"] += table.extra_flops_g
    return table.set_index(table.architecture + " " + table.attention)


def table3_questions() -> dict[str, Weights]:
    """What each attention adds to the vanilla convolution; then what IKM has over the other attentions."""
    blocks, (vanilla, *others) = [NAMES[b] for b in TABLE3_BLOCKS], [NAMES[a] for a in TABLE3_ATTENTIONS]
    pairs = [(block, a, vanilla) for block in blocks for a in others]
    pairs += [(block, "IKM", other) for block in blocks for other in ("CA", "SA")]
    return {f"{block}: {a} − {b}": {f"{block} {a}": 1, f"{block} {b}": -1} for block, a, b in pairs}


def table3_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C1, its part about the paper's own block, and C2. `table`: the contrasts of `table3_questions`."""
    rows = differences(table)
    gains = {name: d for name, d in rows.items() if name.endswith("IKM − none")}
    others = {name: d for name, d in rows.items() if name.endswith(("IKM − CA", "IKM − SA"))}
    own = {name: d for name, d in gains.items() if name.startswith("U-HDB")}
    return {
        "C1": claim(gains, profile, correct=holm,
                    paper="IKM beats vanilla convolution: RB +0.05, DB +0.08, RDB +0.07, U-HDB +0.09 dB (Set5)",
                    holds="Holds for an architecture if the whole 95 % interval of IKM minus vanilla lies above 0; the "
                          "four are corrected by Holm's method."),
        "C1, U-HDB": claim(own, profile, paper="+0.09 dB on Set5",
                           holds="At `cpu-long` the primary endpoint of this study. Holds if the whole 95 % interval "
                                 "lies above 0."),
        "C2": claim(others, profile, margin=SMALLEST,
                    paper="IKM is at least as good as channel and as spatial attention",
                    holds="Holds for a pair if the whole 95 % interval of IKM minus the other lies above "
                          f"-{SMALLEST} dB."),
    }


def table3_sensitivity(profile: Profile) -> pd.DataFrame:
    """IKM minus vanilla read off in other ways, without a verdict: reading, architecture, gain_db_ours, gain_sd over
    seeds, seeds, and the runs finished; a gain stays empty until all of its runs are.

    Readings: as judged; on the validation images after the last update, and their mean over the last 30 % of the
    updates (a dip at the very end weighs less); at a quarter of the updates; at half and at twice the rate; and by the
    first recipe (profile `cpu-first`).
    """
    first = {f"{NAMES[block]} {NAMES[a]}": [Run.of(PROFILES["cpu-first"], replace(ARCHITECTURES[block], attention=a), s)
                                            for s in range(5)] for block in TABLE3_BLOCKS for a in ("none", "ikm")}
    as_judged, checked = planned(profile, "table3"), planned(profile, "rates")
    readings = {"as judged, test images": (as_judged, scores),
                "validation images, after the last update": (as_judged, partial(_late, share=1.0)),
                "validation images, last 30 % of the updates": (as_judged, partial(_late, share=0.7)),
                "a quarter of the updates": (planned(profile, "quarter"), scores)}
    for factor in RATE_FACTORS:
        ending = f", rate x {factor:g}"
        chosen = {label.removesuffix(ending): runs for label, runs in checked.items() if label.endswith(ending)}
        readings[f"rate x {factor:g}"] = chosen, scores
    readings["the same question under the first recipe"] = first, scores
    return pd.DataFrame([(reading, NAMES[block], *_gain(wanted, read, NAMES[block]))
                         for reading, (wanted, read) in readings.items() for block in TABLE3_BLOCKS],
                        columns=["reading", "architecture", "gain_db_ours", "gain_db_sd", "seeds", "runs"])


def _late(done: Variants, share: float) -> pd.DataFrame:
    """Validation PSNR from this share of the updates on, in columns as `scores`."""
    table = curves(done)
    return table[table["update"] >= share * table.groupby("run")["update"].transform("max")]


def _gain(wanted: Variants, read, block: str) -> tuple[float, float, int, str]:
    """Mean and deviation over seeds of IKM minus vanilla, the seeds, and the runs finished."""
    pair = [wanted[f"{block} {attention}"] for attention in ("IKM", "none")]
    runs = runs_in_words(sum(pair, []))
    if not all(pair) or not all(run.finished for run in sum(pair, [])):
        return float("nan"), float("nan"), 0, runs
    ikm, vanilla = (read({"": side}).groupby("seed").psnr_y.mean() for side in pair)
    gains = ikm - vanilla
    return gains.mean(), gains.std(), len(gains), runs


def by_block(done: Variants) -> dict[str, Variants]:
    """Table III's variants a panel an architecture, in the order of the attentions."""
    return {NAMES[b]: {NAMES[a]: done.get(f"{NAMES[b]} {NAMES[a]}", []) for a in TABLE3_ATTENTIONS}
            for b in TABLE3_BLOCKS}


# --- Fig. 10: IsO, general optimisation, autograd -------------------------------------------------------------------


def _slope(points: Mapping[str, float]) -> Weights:
    """Weights whose contrast is the least-squares slope of the labels' values over their abscissae."""
    x = np.array(list(points.values()), dtype=float)
    centred = x - x.mean()
    return dict(zip(points, centred / (centred ** 2).sum(), strict=True))


def _minus(ours: Weights, theirs: Weights) -> Weights:
    """ours - theirs; a label in both counts twice."""
    return pd.Series(ours).sub(pd.Series(theirs), fill_value=0).to_dict()


def fig10_questions(profile: Profile) -> dict[str, Weights]:
    """IsO against GO at each batch and budget, its growth from the profile's batch to four times it, and IsO against
    autograd at the profile's batch."""
    small, usual, large = fig10_batches(profile)

    def versus(other: str, batch: int, budget: str = "") -> Weights:
        return _minus(*({f"{rule}, {fig10_setting(profile, batch, budget)}": 1} for rule in ("IsO", other)))

    asked = {f"batch {usual}: IsO − GO": versus("GO", usual)}
    for budget in FIG10_BUDGETS:
        asked[f"batch {large}, {budget}: IsO − GO"] = versus("GO", large, budget)
    for budget in FIG10_BUDGETS:
        asked[f"growth of IsO − GO to batch {large}, {budget}"] = _minus(
            versus("GO", large, budget), versus("GO", usual))
    for budget in FIG10_BUDGETS:
        asked[f"batch {small}, {budget}: IsO − GO"] = versus("GO", small, budget)
    return asked | {f"batch {usual}: IsO − autograd": versus("autograd", usual)}


def fig10_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C5. `table`: the contrasts of `fig10_questions`."""
    small, usual, large = fig10_batches(profile)
    asked = [name for name in table.contrast if "GO" in name and not name.startswith(f"batch {small},")]
    return {"C5": claim(differences(table, asked), profile, paper="IsO beats GO, more so as the batch grows",
                        holds=f"Holds if the whole 95 % interval of IsO minus GO lies above 0 at the batches {usual} "
                              f"and {large}, and so does its growth from the one to the other, under equal updates and "
                              "under equal patches.")}


def figure_fig10(profile: Profile, table: pd.DataFrame):
    """Above: PSNR over batch size, mean of all test images, bars: deviation over seeds. Below: IsO minus the others.
    Of the runs that `table` rests on: those of complete variants."""
    import matplotlib.pyplot as plt

    batches = sorted(fig10_batches(profile))
    figure, panels = plt.subplots(2, 2, figsize=(9, 7), sharex=True, sharey="row")
    means = scores(complete(planned(profile, "fig10"))).groupby(["variant", "seed"]).psnr_y.mean()
    rows = table.set_index("contrast")
    for (top, bottom), budget in zip(panels.T, FIG10_BUDGETS, strict=True):
        settings = [fig10_setting(profile, batch, budget) for batch in batches]
        for i, rule in enumerate(FIG10_RULES):
            seeds = [means.get(f"{rule}, {setting}", pd.Series(dtype=float)) for setting in settings]
            x = np.array(batches) * 2.0 ** (0.12 * (i - 1))
            top.errorbar(x, [s.mean() for s in seeds], [s.std() if len(s) > 1 else 0 for s in seeds],
                         fmt="o-", capsize=4, color=f"C{i}", label=rule)
            if rule != "IsO":
                d = rows.reindex([f"{setting}: IsO − {rule}" for setting in settings])
                bottom.errorbar(x, d.gain_db_ours, [d.gain_db_ours - d.low_db, d.high_db - d.gain_db_ours],
                                fmt="o", capsize=4, color=f"C{i}", label=f"IsO − {rule}")
        bottom.axhline(0, color="0.3", lw=1)
        top.set(title=budget)
        bottom.set(xlabel="batch size", xscale="log", xticks=batches)
        bottom.set_xticks(batches, [str(b) for b in batches])
        bottom.minorticks_off()
    panels[0, 0].set(ylabel="PSNR, all test images (dB)")
    panels[1, 0].set(ylabel="paired difference (dB)")
    panels[0, 1].legend(fontsize=11)
    panels[1, 1].legend(fontsize=11)
    return figure


# --- Table V: U-style residual learning and the hourglass ------------------------------------------------------------


def table5_published() -> pd.DataFrame:
    """Table V by our labels."""
    labels = {("no", "no"): "neither", ("yes", "no"): "U-style", ("no", "yes"): "hourglass",
              ("yes", "yes"): "U-style + hourglass"}
    table = paper("table5")
    return table.set_index(pd.Index([labels[key] for key in zip(table.u_style_residual, table.hourglass, strict=True)]))


TABLE5_QUESTIONS = {
    "U-style, at equal depths": {"U-style": 1, "neither": -1},
    "U-style, with the hourglass": {"U-style + hourglass": 1, "hourglass": -1},
    "hourglass, without the U": {"hourglass": 1, "neither": -1},
    "hourglass, with the U": {"U-style + hourglass": 1, "U-style": -1},
}


def table5_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C6. `table`: the contrasts of TABLE5_QUESTIONS."""
    return {"C6": claim(differences(table), profile,
                        paper="U-style residual learning adds 0.11 dB, the hourglass 0.04 dB (Set5)",
                        holds="Holds for each, alone and on top of the other, if the whole 95 % interval lies "
                              "above 0.")}


# --- Table IV: the local receptive field ----------------------------------------------------------------------------


def table4_published() -> pd.DataFrame:
    """Table IV by our labels."""
    table = paper("table4")
    labels = [f"k={row.kernel} D={row.dilation} {'IKM' if row.ikm == 'yes' else 'none'}" for row in table.itertuples()]
    return table.set_index(pd.Index(labels))


TABLE4_SLOPE = "growth of the gain per pixel of R"


def table4_questions() -> dict[str, Weights]:
    """IKM's gain for each kernel, and the slope of the gain over the receptive field R."""
    gains = {f"R={field} (k={kernel}, D={dilation})":
             {f"k={kernel} D={dilation} IKM": 1, f"k={kernel} D={dilation} none": -1}
             for (kernel, dilation), field in TABLE4_FIELDS.items()}
    slopes = [_slope({f"k={k} D={d} {attention}": field for (k, d), field in TABLE4_FIELDS.items()})
              for attention in ("IKM", "none")]
    return gains | {TABLE4_SLOPE: _minus(*slopes)}


def table4_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C3. `table`: the contrasts of `table4_questions`."""
    return {"C3": claim(differences(table, [TABLE4_SLOPE]), profile,
                        paper="IKM's gain grows with the receptive field: 0.07 dB at R = 3, 0.14 dB at R = 9",
                        holds="Holds if the whole 95 % interval of the fitted slope, dB per pixel of R, lies above 0; "
                              f"fails if it lies below {SMALLEST} dB from R = 3 to R = 9.", smallest=SMALLEST / 6)}


def figure_table4(table: pd.DataFrame):
    """IKM's gain against R, ours and the paper's, each with its fitted line; shaded: the 95 % interval of our slope."""
    import matplotlib.pyplot as plt

    rows = table.set_index("contrast").drop(columns=["images", "seeds", "runs"]).astype(float)
    slope, gains = rows.loc[TABLE4_SLOPE], rows.drop(TABLE4_SLOPE)
    field = np.array(list(TABLE4_FIELDS.values()), dtype=float)
    line = np.linspace(field.min() - 0.5, field.max() + 0.5, 2)
    figure, axes = plt.subplots(figsize=(9, 4.8))
    for i, (source, marker, face) in enumerate((("gain_db_ours", "o", None), ("gain_db_paper", "D", "none"))):
        centre, x = gains[source].mean(), field + 0.06 * (1 - 2 * i)
        axes.plot(line, centre + slope[source] * (line - field.mean()), color=f"C{i}", lw=1.5)
        axes.scatter(x, gains[source], marker=marker, s=55, facecolors=face or f"C{i}", edgecolors=f"C{i}",
                     label="ours, 95 % interval" if i == 0 else "paper")
        if i == 0:
            axes.errorbar(x, gains[source], [gains[source] - gains.low_db, gains.high_db - gains[source]], fmt="none",
                          color="C0", capsize=4)
            axes.fill_between(line, centre + slope.low_db * (line - field.mean()),
                              centre + slope.high_db * (line - field.mean()), color="C0", alpha=0.15)
    axes.axhline(0, color="0.3", lw=1)
    axes.set_xticks(sorted(set(field)))
    axes.set(xlabel="receptive field of one convolution, R = (k − 1) D + 1 (pixels)", ylabel="gain of IKM (dB)")
    axes.legend(fontsize=11)
    return figure


# --- Fig. 9: the threshold ------------------------------------------------------------------------------------------


def fig9_questions() -> dict[str, Weights]:
    """The threshold 0 against each other one, and the median against 0."""
    asked = {f"tau = 0 − tau = {tau}": {"tau = 0.0": 1, f"tau = {tau}": -1}
             for tau in FIG9_THRESHOLDS if tau not in (0.0, "median")}
    return asked | {"tau = median − tau = 0": {"tau = median": 1, "tau = 0.0": -1}}


def threshold_cost(repeats: int = 15) -> pd.DataFrame:
    """Time of masks and pooling by threshold on one machine: 16 images of 64 channels, 48 x 48 pixels.

    Columns: threshold, milliseconds (median of interleaved repeats), ratio_ours to the threshold 0.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(16, 64, 48, 48, generator=torch.Generator().manual_seed(0)).to(device)
    seconds: dict[float | str, list[float]] = {tau: [] for tau in (0.0, "mean", "median")}
    for _ in range(repeats + 1):
        for tau, times in seconds.items():
            start = time.perf_counter()
            pooled_mask(x, 3, tau=tau).sum().item()   # waits for the device
            times.append(time.perf_counter() - start)
    medians = [1e3 * float(np.median(times[1:])) for times in seconds.values()]   # the first warms up
    return pd.DataFrame({"threshold": [f"tau = {tau}" for tau in seconds], "milliseconds": medians,
                         "ratio_ours": [m / medians[0] for m in medians]})


def fig9_verdicts(table: pd.DataFrame, cost: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C4 in its two parts. `table`: the contrasts of `fig9_questions`; `cost`: of `threshold_cost`."""
    rows = differences(table)
    median = {name: rows.pop(name) for name in list(rows) if name.startswith("tau = median")}
    ratio = cost.set_index("threshold").ratio_ours["tau = median"]
    better = claim(median, profile, paper="the median is better than 0, but slow",
                   holds="Holds if the whole 95 % interval of the median minus 0 lies above 0.")
    better["ours"] += f"; masks and pooling take {ratio:.1f} times as long"
    return {"C4, zero": claim(rows, profile, margin=SMALLEST, paper="tau = 0 is a good threshold",
                              holds="Holds if 0 is at least as good as the mean and every other fixed threshold: the "
                                    f"whole 95 % interval of the difference lies above -{SMALLEST} dB."),
            "C4, median": better}


# --- Fig. 11: the order of the depths -------------------------------------------------------------------------------


FIG11_QUESTIONS = {f"{a} − {b}": {a: 1, b: -1} for a, b in (
    ("U-HDN", "V1"), ("U-HDN", "V2"), ("U-HDN", "V3"), ("V2", "V1"), ("V3", "V1"))}


def fig11_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C7. `table`: the contrasts of FIG11_QUESTIONS."""
    return {"C7": claim(differences(table), profile,
                        paper="U-HDN beats V1, V2 and V3 at equal cost; V2 and V3 beat V1",
                        holds="Holds for a pair if the whole 95 % interval lies above 0.")}


# --- Fig. 8: model size ---------------------------------------------------------------------------------------------


def _params(arch: Architecture) -> int:
    return cost(arch, 2)[0]


def fig8_questions(profile: Profile) -> dict[str, Weights]:
    """What each step of each sweep adds; and how much more the first adds than the last, per doubling of #Params."""
    asked = {}
    for letter, sweep in fig8_sizes(profile).items():
        steps = list(pairwise(sweep))
        asked |= {f"{b} − {a}": {b: 1, a: -1} for a, b in steps}
        (a, b), (c, d) = steps[0], steps[-1]
        first, last = (np.log2(_params(sweep[high]) / _params(sweep[low])) for low, high in (steps[0], steps[-1]))
        asked[f"{letter}: first step − last, per doubling of #Params"] = _minus(
            {b: 1 / first, a: -1 / first}, {d: 1 / last, c: -1 / last})
    return asked


def fig8_verdicts(table: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str]]:
    """C8. `table`: the contrasts of `fig8_questions`."""
    return {"C8": claim(differences(table), profile, paper="quality grows with N, U and C, and saturates",
                        holds="Holds if the whole 95 % interval lies above 0 for every step to a larger network and, "
                              "in every sweep, for the first step's gain per doubling of #Params minus the last's.")}


def figure_fig8(profile: Profile):
    """PSNR over all test images against #Params, a line a sweep; bars are the standard deviation over seeds. Of
    complete variants."""
    import matplotlib.pyplot as plt

    means = common_seeds(scores(complete(planned(profile, "fig8")))).groupby(["variant", "seed"]).psnr_y.mean()
    figure, axes = plt.subplots(figsize=(9, 5))
    for (letter, sweep), marker in zip(fig8_sizes(profile).items(), "os^", strict=True):
        seeds = [means.get(label, pd.Series(dtype=float)) for label in sweep]
        y, x = [s.mean() for s in seeds], [_params(arch) / 1e6 for arch in sweep.values()]
        axes.errorbar(x, y, [s.std() if len(s) > 1 else 0 for s in seeds], fmt=f"{marker}-", capsize=4, label=letter)
        for label, *point in zip(sweep, x, y, strict=True):
            if np.isfinite(point[1]):
                name = "base" if sweep[label] == ablated(profile) else label   # one point, in all sweeps
                axes.annotate(name, point, xytext=(6, -12), textcoords="offset points", fontsize=10)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3) if min(map(_params, fig8_arches(profile))) / 2e6 < tick]
    axes.set(xscale="log", xlabel="#Params (millions)", ylabel="PSNR, all test images (dB)")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(title="sweep of", fontsize=11)
    return figure


def fig8_arches(profile: Profile) -> list[Architecture]:
    """All networks of Fig. 8's sweeps."""
    return [arch for sweep in fig8_sizes(profile).values() for arch in sweep.values()]


# --- Tables I and II: beside other methods --------------------------------------------------------------------------


def table1_published() -> pd.DataFrame:
    """The paper's own rows of Table I by our labels, x2, x3, x4."""
    table = paper("table1").query("method == 'U-HDN+IKM'")
    return table.set_index("x" + table.scale.astype(str))


def table2_published() -> pd.DataFrame:
    """The paper's own rows of Table II by our labels."""
    table = paper("table2").set_index("method")
    return table.assign(params_k=1e3 * table.params_m)


def by_set(table: pd.DataFrame, states: pd.DataFrame) -> pd.DataFrame:
    """A `summary` with a row a test set instead of columns: variant, set, state (of `set_states`), psnr and ssim."""
    state, rows = states.set_index("set").state, []
    for row in table.to_dict("records"):
        names = [c.removesuffix("_psnr_ours") for c in table if c.endswith("_psnr_ours")]
        rows += [{"variant": row["variant"], "set": name, "state": state.get(name, "scored"),
                  **{c.removeprefix(f"{name}_"): v for c, v in row.items() if c.startswith(f"{name}_")},
                  "seeds": row["seeds"]} for name in names]
    return pd.DataFrame(rows)


def set_states(profile: Profile, done: Variants, sets: Sequence[str] = config.BENCHMARKS) -> pd.DataFrame:
    """A row a test set of the paper: scored | installed, not scored at this profile | not installed."""
    scored = set(scores(done)["set"])
    states = ["scored" if name in scored else "not installed" if not datasets.is_installed(name) else
              "installed, but not scored by these runs" for name in sets]
    return pd.DataFrame({"set": sets, "state": states})


def among_methods(published: pd.DataFrame, ours: pd.DataFrame, labels: Mapping[str, tuple[int, str]]) -> pd.DataFrame:
    """The paper's table with our rows below each scale's. `labels`: label of `ours` -> (scale, name of the row)."""
    mine = ours.set_index("variant").rename(columns=lambda name: name.removesuffix("_ours"))
    mine = mine[[column for column in mine if column in published or column.endswith(("_psnr", "_ssim"))]]
    mine = pd.concat([mine.loc[[label]].assign(scale=scale, method=method)
                      for label, (scale, method) in labels.items()])
    return pd.concat([published, mine]).sort_values("scale", kind="stable").reset_index(drop=True)


def c9(table: pd.DataFrame, own: str, profile: Profile) -> dict[str, str]:
    """C9: our means against the other methods' printed numbers, wherever both exist.

    `table`: of `among_methods`; `own`: the paper's name of the network. There are no per-image scores of theirs to pair
    with; so only a training at the published budget, on the published data, is compared.
    """
    columns = [c for c in table if c.endswith("_psnr") and not c.startswith("embedded")]
    ours = table[table.method == f"{own}, this study"].set_index("scale")[columns]
    rivals = table[~table.method.str.startswith("U-HDN")].groupby("scale")[columns].max()
    wins = (ours > rivals).where(ours.notna() & rivals.notna()).stack().dropna().astype(bool)
    tested = profile.name == "paper" and len(wins) > 0
    verdict = ("supported" if wins.all() else "mixed" if wins.any() else "not supported") if tested else (
        "not tested at this budget")
    known = "; ".join(f"x{scale} {column.removesuffix('_psnr')} {value:.2f}" for (scale, column), value in
                      ours.stack().dropna().items())
    return {"paper": f"{own} has the best PSNR of its table", "ours": known or "no set of the table was scored",
            "verdict": verdict,
            "because": "Holds where our mean is above every other method's printed number; only the profile `paper` "
                       "trains on the published data for the published time."}


def y_rounding(done: Variants) -> pd.DataFrame:
    """What rounding luma to integers costs our own networks, dB, by test set: measured, and predicted from MSE + 1/6.

    Where Table II's rows are scores on rounded luma, a float score beside them is ahead by this much.
    """
    found = scores(done)
    found["measured_db"] = found.psnr_y - found.psnr_y_rounded
    found["predicted_db"] = found.psnr_y.map(rounding_cost)
    table = found.groupby("set", sort=False).agg(
        images=("image", "nunique"), psnr_y=("psnr_y", "mean"), psnr_y_rounded=("psnr_y_rounded", "mean"),
        measured_db=("measured_db", "mean"), predicted_db=("predicted_db", "mean"))
    return table.reset_index()
