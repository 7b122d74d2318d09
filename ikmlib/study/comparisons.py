"""What all artefacts share: from finished runs' records to tables, contrasts, figures and the words of a verdict.

Every artefact is told the same way. `summary` prints its networks beside the paper's numbers; `contrasts` answers its
questions, each a weighted sum of paired scores with an interval; `claim` says what the verdict rule makes of them.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.models import ARCHITECTURES, Architecture, cost
from ikmlib.study import records
from ikmlib.study.claims import seeds_in_words
from ikmlib.study.experiments import PARTS, Variants, complete, planned
from ikmlib.study.records import Run
from ikmlib.study.stats import (
    MIN_SEEDS,
    SMALLEST,
    UNTESTED,
    Difference,
    Waiting,
    contrast,
    judge,
    outcomes,
    residual_deviation,
)

Weights = Mapping[str, float]


# --- tables ---------------------------------------------------------------------------------------------------------


def paper(name: str) -> pd.DataFrame:
    """A table of the paper, such as "table3". `none` and `-` stay text."""
    return pd.read_csv(config.PAPER / f"{name}.csv", keep_default_na=False, na_values=[""])


def scores(done: Variants) -> pd.DataFrame:
    """Per-image scores of finished runs with their variant's label, in columns as `records.SCORES` and `variant`."""
    return _labelled(done, records.scores)


def curves(done: Variants) -> pd.DataFrame:
    """Learning curves of finished runs with their variant's label."""
    return _labelled(done, records.curves)


def _labelled(done: Variants, read) -> pd.DataFrame:
    frames = [read(runs).assign(variant=label) for label, runs in done.items() if runs]
    return pd.concat(frames, ignore_index=True) if frames else read([]).assign(variant="")


def common_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Only the seeds that every variant has, so that no row is the mean of other seeds than its neighbour."""
    trained = scores.groupby("variant").seed.agg(set)
    return scores[scores.seed.isin(set.intersection(*trained))] if len(trained) else scores


def shown_sets(scores: pd.DataFrame, wanted: Sequence[str]) -> list[str]:
    """The paper's test sets; and, where none of them was scored, what was."""
    there = list(scores["set"].unique())
    return [*wanted] if set(there) & set(wanted) or not there else [*wanted, *there]


def runs_in_words(runs: Sequence[Run]) -> str:
    """How much is finished: "3 of 5 runs, 1 diverged"."""
    diverged = sum(run.diverged for run in runs)
    return (f"{sum(run.finished for run in runs)} of {len(runs)} runs" + f", {diverged} diverged" * bool(diverged)
            if runs else "not planned")


def summary(profile: Profile, part: str, sets: Sequence[str], published: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a variant of a part: N as trained, #Params (K) and #FLOPs (G) counted live, PSNR and SSIM of each set,
    paper | ours, and the runs finished.

    `published` (index: labels): the paper's numbers, in columns params_k, flops_g, <set>_psnr, <set>_ssim; costs are
    then counted on networks of the paper's size, whatever N was trained. Ours are
    means over images, then over `common_seeds`, with the standard deviation over seeds, and stay empty until all
    declared runs of the variant are finished.
    """
    wanted, trained = planned(profile, part), PARTS[part][1](profile)
    counted = trained if published is None else PARTS[part][1](PROFILES["paper"])
    ours, rows = common_seeds(scores(complete(wanted))), []
    published = pd.DataFrame(index=list(wanted)) if published is None else published
    order = [label for label in published.index if label in wanted]
    for label, runs in ((label, wanted[label]) for label in dict.fromkeys([*order, *wanted])):
        costs = cost_columns(counted[label].arch, counted[label].scale)
        cells = {name: (value, None) for name, value in costs.items()}   # ours, standard deviation over seeds
        mine = ours[ours.variant == label]
        for name in shown_sets(ours, sets):
            for metric in ("psnr", "ssim"):
                means = mine[mine["set"] == name].groupby("seed")[f"{metric}_y"].mean()
                cells[f"{name}_{metric}"] = means.mean(), means.std()
        row = {"variant": label, "N_trained": trained[label].arch.blocks}
        for quantity, (value, spread) in cells.items():
            if quantity in published:
                row[f"{quantity}_paper"] = published[quantity].get(label)
            row[f"{quantity}_ours"] = value
            if spread is not None:
                row[f"{quantity}_sd"] = spread
        rows.append(row | {"seeds": mine.seed.nunique(), "runs": runs_in_words(runs)})
    return pd.DataFrame(rows)


# --- the paper's printed numbers ------------------------------------------------------------------------------------


def cost_columns(arch: Architecture, scale: int) -> dict[str, float]:
    """#Params (thousands) and #FLOPs (1e9) of a network, by their columns' names in `ikmlib/paper/`."""
    params, multi_adds = cost(arch, scale)
    return {"params_k": params / 1e3, "flops_g": multi_adds / 1e9}


def rounds_to(ours: float, printed: str) -> bool:
    """Does `ours`, rounded to the decimals of a number as printed, equal it?"""
    return round(ours, len(printed.partition(".")[2])) == float(printed)


def cost_table() -> pd.DataFrame:
    """#Params (thousands) and #FLOPs (1e9) that the paper prints for its own networks, beside ours: a row a number.

    table, network, quantity, paper, ours, and `equal`: whether ours rounds to the printed number.
    """
    def printed(table):
        return pd.read_csv(config.PAPER / f"table{table}.csv", dtype=str).to_dict("records")

    uhdn = ARCHITECTURES["uhdn"]
    networks = [("Table I", f"U-HDN x{row['scale']}", uhdn, row) for row in printed(1) if row["method"] == "U-HDN+IKM"]
    networks += [("Table III", row["architecture"], ARCHITECTURES[row["architecture"].lower().replace("-", "")], row)
                 for row in printed(3) if row["attention"] == "IKM"]
    networks += [("Table IV", f"k = {row['kernel']}, dilation {row['dilation']}, IKM {row['ikm']}",
                  replace(uhdn, kernel=int(row["kernel"]), dilation=int(row["dilation"])), row) for row in printed(4)]
    networks += [("Table V", f"residual {row['u_style_residual']}, hourglass {row['hourglass']}",
                  uhdn if row["hourglass"] == "yes" else replace(uhdn, depths=(5,) * 6), row) for row in printed(5)]
    rows = []
    for table, network, arch, row in networks:
        for quantity, ours in cost_columns(arch, int(row.get("scale", 2))).items():
            if text := row.get(quantity):   # Table IV prints no #FLOPs
                rows.append((table, network, quantity, float(text), ours, rounds_to(ours, text)))
    return pd.DataFrame(rows, columns=["table", "network", "quantity", "paper", "ours", "equal"])


def rounding_cost(psnr: float) -> float:
    """dB that an image of `psnr` dB loses by rounding both Y: two errors of variance 1/12 each add 1/6 to the MSE."""
    return 10 * math.log10(1 + 10 ** (psnr / 10) / 255**2 / 6)


# --- comparisons ----------------------------------------------------------------------------------------------------


def architecture_of(label: str) -> str:
    """The family of Table III's and the controls' variants: "U-HDB IKM" -> "U-HDB"."""
    return label.split()[0]


def contrasts(wanted: Variants, questions: Mapping[str, Weights], published: Mapping[str, float] | None = None, *,
              sets: Sequence[str] = (), family: Callable[[str], str] = lambda label: "",
              at_test: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a question: what the weights make of the paper's numbers (`published`: label -> dB) and of our records.

    `wanted`: the declared runs. A question is answered when all runs that it needs are finished: those of its variants
    with the seeds that all of them have by declaration. Ours are paired over images and seeds, of all scored test sets,
    or of `sets` where they were scored. Deviations over seeds are pooled over the complete variants of each `family`
    (see `stats.residual_deviation`), except where a variant is of `at_test`: scores of trained networks tested
    otherwise, in columns as `scores`, the label starting with that of the trained variant.
    """
    ours, rows, published = scores(finished(wanted)), [], {} if published is None else published
    if set(sets) & set(ours["set"]):
        ours = ours[ours["set"].isin(sets)]
    whole = [label for label, runs in complete(wanted).items() if runs]
    means = ours[ours.variant.isin(whole)].groupby(["variant", "seed"]).psnr_y.mean().unstack()
    pooled = {name: residual_deviation(group) for name, group in means.groupby(means.index.map(family))} if len(means) \
        else {}
    for name, weights in questions.items():
        theirs = sum(w * published.get(label, float("nan")) for label, w in weights.items())
        trained = [_trained(label, wanted) for label in weights]
        seeds = set.intersection(*({run.seed for run in wanted.get(label, ())} for label in trained))
        needed = list(dict.fromkeys(run for label in trained for run in wanted.get(label, ()) if run.seed in seeds))
        d = None
        if needed and all(run.finished for run in needed):
            other = set(weights) - set(wanted)
            table = ours if not other or at_test is None else pd.concat([ours, at_test])
            deviation = None if other else pooled.get(family(next(iter(weights))))
            d = contrast(table[table.seed.isin(seeds)], weights, deviation)
        found = (None,) * 6 if d is None else (*d.interval, d.detectable, d.images, d.seeds)
        errors = [item for error in (*(d.errors if d else ()), (None, None), (None, None)) for item in error][:4]
        rows.append((name, theirs, *found, runs_in_words(needed), *errors))
    table = pd.DataFrame(rows, columns=["contrast", "gain_db_paper", "gain_db_ours", "low_db", "high_db",
                                        "detectable_db", "images", "seeds", "runs", "images_error_db",
                                        "images_freedom", "seeds_error_db", "seeds_freedom"])
    return table.astype({"images": "Int64", "seeds": "Int64"} | dict.fromkeys(
        ["gain_db_ours", *table.columns[3:6], *table.columns[-4:]], float))


def finished(wanted: Variants) -> Variants:
    """The finished runs of each variant."""
    return {label: [run for run in runs if run.finished] for label, runs in wanted.items()}


def _trained(label: str, wanted: Variants) -> str:
    """The trained variant behind a label: itself, or "U-HDB IKM" of "U-HDB IKM, swapped at test"."""
    return label if label in wanted else label.partition(",")[0]


def differences(table: pd.DataFrame, names: Sequence[str] | None = None) -> dict[str, Difference | Waiting]:
    """Rows of `contrasts` as what `claim` takes; all of them, or those named."""
    rows = table.set_index("contrast")
    rows = rows if names is None else rows.loc[list(names)]
    found: dict[str, Difference | Waiting] = {}
    for name, row in rows.iterrows():
        pairs = ((row.images_error_db, row.images_freedom), (row.seeds_error_db, row.seeds_freedom))
        errors = tuple(pair for pair in pairs if pd.notna(pair[1]))
        found[name] = Waiting(row.runs, row.gain_db_paper) if pd.isna(row.gain_db_ours) else Difference(
            row.gain_db_ours, row.low_db, row.high_db, int(row.seeds), int(row.images), errors=errors,
            paper=row.gain_db_paper)
    return found


def _in_words(name: str, d: Difference | Waiting, outcome: str | None) -> str:
    """A comparison as a verdict tells it: difference, interval, outcome, and what could have been seen."""
    if outcome is None:
        return f"{name} {d}"
    seen = f"; {d.detectable:.3f} could have been seen" if np.isfinite(d.detectable) else ""
    return f"{name} {d} ({outcome}{seen})"


def claim(found: Mapping[str, Difference | Waiting], profile: Profile, *, paper: str, holds: str, margin: float = 0.0,
          smallest: float = SMALLEST, correct: Callable[[Sequence[float]], Sequence[float]] = list,
          ) -> dict[str, object]:
    """Keyword arguments of `Page.verdict` for a claim that all of `found` are better, or at least as good within
    `margin` (see `stats.outcomes`). While one of them waits for runs, the claim is not tested."""
    tested = {name: d for name, d in found.items() if isinstance(d, Difference)}
    fewest = min((d.seeds for d in tested.values()), default=0) if len(tested) == len(found) else 0
    said = dict(zip(tested, outcomes(list(tested.values()), margin=margin, smallest=smallest, correct=correct),
                    strict=True))
    if len(found) <= 5 or not tested:
        ours = "; ".join(_in_words(name, d, said.get(name)) for name, d in found.items())
    else:
        means, sizes = [d.mean for d in tested.values()], [d.detectable for d in tested.values()]
        counts = ", ".join(f"{n} {name}" for name, n in Counter(said.values()).items())
        ours = (f"{len(tested)} of {len(found)} comparisons complete, from {min(means):+.3f} to {max(means):+.3f} dB: "
                f"{counts}; {max(sizes):.3f} dB could have been seen in any of them")
    enough = profile.evidence and fewest >= MIN_SEEDS
    comparisons = {name: [None if pd.isna(x) else float(x) for x in (d.paper, *getattr(d, "interval", ()))]
                   for name, d in found.items()}
    return {"paper": paper, "ours": ours, "seeds": fewest, "comparisons": comparisons,
            "verdict": judge(list(said.values())) if enough else UNTESTED,
            "because": f"{holds} " + (f"Fewest seeds of any comparison: {fewest} ({MIN_SEEDS} needed)." if fewest else
                                      "Some of the declared runs are not finished.")}


# --- figures --------------------------------------------------------------------------------------------------------


def with_seeds(table: pd.DataFrame) -> list[str]:
    """The contrasts' names; with the runs that are finished where some are not, and with the number of seeds where rows
    rest on different numbers: one seed's interval, of images alone, is narrow for that reason."""
    several = table.seeds.dropna().nunique() > 1
    return [row.contrast + (f" ({row.runs})" if pd.isna(row.seeds) else f" ({seeds_in_words(row.seeds)})" * several)
            for row in table.itertuples()]


def draw_intervals(axes, mean: pd.Series, low: pd.Series, high: pd.Series, y: Sequence[float], seeds: pd.Series,
                   colour: str, label: str) -> None:
    """Points with 95 % intervals; hollow where they rest on fewer seeds than a verdict needs."""
    enough = (seeds >= MIN_SEEDS).fillna(False).to_numpy(dtype=bool)
    for chosen, face, name in ((enough, colour, label), (~enough, "white", None)):
        m, lo, hi = (values[chosen].astype(float) for values in (mean, low, high))
        axes.errorbar(m, np.asarray(y)[chosen], xerr=[m - lo, hi - m], fmt="o", color=colour, mfc=face, capsize=4,
                      label=name)


def figure_contrasts(table: pd.DataFrame, published_on: str = ""):
    """Ours with the 95 % interval, hollow where seeds are too few for a verdict, the paper's as a hollow diamond; a row
    a question of `contrasts`. `published_on`: the test set of the paper's numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.7 + 0.42 * len(table)))
    y = range(len(table))
    draw_intervals(axes, table.gain_db_ours, table.low_db, table.high_db, y, table.seeds, "C0",
                   "ours, 95 % interval, all test images")
    if table.gain_db_paper.notna().any():
        axes.scatter(table.gain_db_paper.astype(float), y, marker="D", s=55, facecolors="none", edgecolors="C1", lw=1.6,
                     label=f"paper{published_on and f', {published_on}, no interval'}")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(y, with_seeds(table))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference (dB)")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_gains(panels: Mapping[str, Variants], baseline: str):
    """Validation PSNR minus that of `baseline`, trained from the same seed; a panel each, thin lines are seeds, thick
    ones their mean. The first quarter of the updates, where differences are large, is left out."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(-(-len(panels) // 2), 2, figsize=(9, 1.4 + 2.9 * -(-len(panels) // 2)), sharex=True,
                                sharey=True, squeeze=False)
    for axes, (title, done) in zip(grid.flat, panels.items(), strict=False):
        wide = curves(done).pivot_table(index="update", columns=["variant", "seed"], values="psnr_y")
        wide = wide[wide.index > wide.index.max() / 4]
        for i, label in enumerate(label for label in done if label != baseline):
            if {label, baseline} <= set(wide.columns.get_level_values(0)):
                gains = (wide[label] - wide[baseline]).dropna(axis=1, how="all")
                axes.plot(gains.index, gains, color=f"C{i}", lw=0.8, alpha=0.5)
                axes.plot(gains.index, gains.mean(axis=1), color=f"C{i}", lw=2.2, label=label)
        axes.axhline(0, color="0.3", lw=1)
        axes.set(title=title, xlabel="updates", ylabel=f"minus {baseline} (dB)")
        axes.label_outer()
    if grid[0, 0].get_legend_handles_labels()[0]:
        grid[0, 0].legend(fontsize=10)
    return figure


def figure_curves(panels: Mapping[str, Variants]):
    """Validation PSNR over updates, a panel each for labelled variants; bands are the standard deviation over seeds."""
    import matplotlib.pyplot as plt
    import seaborn

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(9, 1.2 + 3.1 * rows + 1.2 * (columns == 1)), sharex=True,
                                sharey=True, squeeze=False)
    for axes, (title, done) in zip(grid.flat, panels.items(), strict=False):
        found = curves(done)
        seaborn.lineplot(found, x="update", y="psnr_y", hue="variant", style="variant", errorbar="sd", ax=axes)
        axes.set(title=title, xlabel="updates", ylabel="validation PSNR (dB)")
        if len(found):
            axes.legend(title="", fontsize=10)
    return figure
